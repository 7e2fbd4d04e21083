"""DOCORA_SETTINGS: `beside_env/` is what someone who extends Docora keeps beside their `.env`. The handbook shows it."""
