"""What people look at: reports of datasets as text, pages and charts; piano rolls; tables."""
