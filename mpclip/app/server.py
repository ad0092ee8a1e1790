"""Serves the page, with limits: who may reach it, how much may be sent, how many may wait."""

import ipaddress
import logging
from typing import TYPE_CHECKING

from mpclip.app.guard import Guard
from mpclip.app.page import CSS, theme
from mpclip.app.uploads import MAX_BYTES

if TYPE_CHECKING:
    from gradio import Blocks

logger = logging.getLogger(__name__)

MOST_WAITING = 32  # requests in the queue; more are told to come again
MOST_SESSIONS = 100  # whose last answers are kept in memory
NAMES_OF_LOOPBACK = ["127.0.0.1", "localhost", "[::1]", "::1"]


def serve(page: "Blocks", host: str | None = "127.0.0.1", port: int | None = None, block: bool = True) -> str:
    """Serve a page of `build_page`. One request is computed at a time.

    Args:
        page: the page.
        host: address to listen at. For all but this machine's own, a warning is logged. None: what GRADIO_SERVER_NAME says, for
            a Space, whose place decides who may reach it.
        port: to listen at. None: the first free one from 7860.
        block: wait until the program is stopped.

    Returns:
        The address of the page on this machine.

    Raises:
        OSError: the port is taken.
    """
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    layers = [Middleware(Guard)]
    if is_loopback(host):
        # Another site's name may be made to lead to this machine. Its pages could then talk to the app by that name.
        layers.append(Middleware(TrustedHostMiddleware, allowed_hosts=NAMES_OF_LOOPBACK))
    elif host is not None:
        logger.warning(
            "Listening at %s: everyone who can reach this machine can search these pictures and use its processor. There is no "
            "password.",
            host,
        )
    page.queue(max_size=MOST_WAITING, default_concurrency_limit=1)
    _, address, _ = page.launch(
        server_name=host,
        server_port=port,
        prevent_thread_lock=True,
        share=False,
        quiet=True,
        inline=False,
        max_file_size=MAX_BYTES,
        state_session_capacity=MOST_SESSIONS,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        theme=theme(),
        css=CSS,
        app_kwargs={"middleware": layers, "docs_url": None, "redoc_url": None, "openapi_url": None},
    )
    print(f"Open {address} in a browser. Ctrl-C ends the app.", flush=True)
    if block:
        page.block_thread()
    return address


def is_loopback(host: str | None) -> bool:
    """Whether a host can be reached from this machine alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False
