"""Schema `catalog`: statements, migrations and the store that runs them."""
