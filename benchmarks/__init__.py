"""Costs, measured: `.flops`, `.speed`, `.serving`, `.cache_formats`; `.cost_page` puts their JSON into docs/cost.md."""
