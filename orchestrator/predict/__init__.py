"""``ttmoe predict``: answer texts, lines of standard input or files with a library's router."""
