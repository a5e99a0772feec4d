"""An evaluation of in-context generation: its files in, tables and a page out."""
