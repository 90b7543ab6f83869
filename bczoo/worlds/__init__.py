"""World models at work: videos that they dream, a game to play in them, and how good they are."""
