"""Alembic on DATABASE_URL: one migrator at a time, and no long wait for a lock."""

from __future__ import annotations

from alembic import context
from sqlalchemy import NullPool, create_engine, text

from diet_game.settings import database_url

# Two releases may start at once; any number will do, as long as it is always this one.
MIGRATION_LOCK = 4_207_001

url = "postgresql+psycopg://" + database_url().partition("://")[2]
engine = create_engine(url, poolclass=NullPool, connect_args={"connect_timeout": 5})

with engine.connect() as connection:
    connection.execute(text("SET lock_timeout = '60s'"))
    connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": MIGRATION_LOCK})
    # A migration that cannot get a table's lock soon fails, rather than queue up every request
    # of the version that is serving behind it.
    connection.execute(text("SET lock_timeout = '5s'"))
    connection.commit()
    context.configure(connection=connection, transaction_per_migration=True)
    known = {script.revision for script in context.script.walk_revisions()}
    unknown = set(context.get_context().get_current_heads()) - known
    if unknown and context.get_revision_argument() == context.get_head_revision():
        # An older version is being released again: newer schemas serve it too, so leave them be.
        print(f"the schema is at {', '.join(sorted(unknown))}, newer than this version; left as is")
    else:
        with context.begin_transaction():
            context.run_migrations()
