"""Run git and talk to git servers: processes, errors, `ls-refs` over HTTP, and URL rules. No models."""
