"""How anything is drawn for a browser: charts, tables, templates; shared by every page."""
