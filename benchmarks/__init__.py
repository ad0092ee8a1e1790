"""Measurements, and the pages of docs/ that show them.

Cost: `.flops`, `.speed`, `.serving`, `.cache_formats` and `.guards`; `.cost_page` writes their tables into docs/cost.md.
`.large_index`: a million vectors in each kind of index; `.cost_page` writes its table into docs/embedding_many.md.
Quality: `.ablation`, `.sts`, `.aspect_weights` and `.expanded_queries`; `.results_page` writes docs/results.md and
docs/results/*.md. `.options_page` writes docs/options.md. `python -m benchmarks.NAME --help` shows how to call each.

These modules are the commands and import no torch, so that their help appears at once. What measures stands beside them:
`.flop_counts`, `.speed_ratios`, `.serving_engines`, `.guard_times`, `.retrieval_cells`, `.sts_cells`, and what those share.
"""
