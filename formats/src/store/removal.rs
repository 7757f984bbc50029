//! Removing images, as `docker rmi` does: names first, and what nothing names any more at once.
