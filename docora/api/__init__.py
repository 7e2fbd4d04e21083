"""What the REST API is made with: bounded bodies, documented answers, errors as sentences, the reference for people."""
