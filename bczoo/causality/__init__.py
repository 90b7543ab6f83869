"""Does a policy act on what it sees? Causality score, action reliance, and what to hold beside them."""
