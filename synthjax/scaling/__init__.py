"""What data are worth: resampled errors, laws, data-efficiency multiples with their intervals."""
