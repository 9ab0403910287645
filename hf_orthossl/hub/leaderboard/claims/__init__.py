"""Claims of authors: read them from untrusted files, check them, measure them again."""
