"""Pages about a finished run: report.html, comparison.html, the contact sheet and tables.

In: the folder of a run. Out: HTML that needs no network, PNG, and text for a terminal. Begin with
`page.py`; `facts.py` reads everything that the page shows.
"""
