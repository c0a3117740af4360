"""The channel: what messages look like on a wire, and stages between client and rule."""
