"""What people look at: the table, the contact sheet, and `report.html`, the page of a run."""
