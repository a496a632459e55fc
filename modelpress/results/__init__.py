"""What trials left in the store: collected, listed, published, shown as a report. Reads and writes the store only."""
