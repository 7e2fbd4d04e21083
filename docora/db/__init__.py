"""The database connection, custom model fields and the database clock. No models."""
