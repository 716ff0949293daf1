"""`liftplus serve`: answers over HTTP."""
