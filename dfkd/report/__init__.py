"""Pages about a finished run: report.html, comparison.html, the contact sheet, and tables.

In: the storage of a run. Out: HTML that loads nothing from a network, PNG, Markdown, and text for a
terminal. Begin with `page.py`, then `facts.py`, which collects what a page shows with `gallery.py`.
`wording.py` writes the headline and formats numbers. `tables.py` and `contact_sheet.py` stand by
themselves.
"""
