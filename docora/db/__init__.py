"""Database helpers without models: connection options, the database's clock, schema checks and custom fields."""
