"""Run directories in; tables, figures and the HTML report out. Reads files and needs neither torch nor ray."""
