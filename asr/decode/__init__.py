"""From log-probabilities to text: greedy decoding, words with seconds, `Recognizer`."""
