"""Transcripts: normalisation and tokens."""
