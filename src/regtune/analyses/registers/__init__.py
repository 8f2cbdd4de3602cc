"""What registers hold and do."""
