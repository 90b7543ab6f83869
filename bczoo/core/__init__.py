"""What everything rests on: action spaces, specifications, frames, files, errors, statistics. Brings in no model."""
