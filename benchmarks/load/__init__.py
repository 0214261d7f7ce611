"""What happens under load: arrivals that do not wait, callers who do, and hours of both."""
