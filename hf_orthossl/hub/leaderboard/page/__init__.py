"""The page that shows a board, and the Space that serves it."""
