"""The user's code: fetched, found and called."""
