"""``ttmoe predict``: texts, lines of standard input, or whole files in; answers of a library's routed model out."""
