"""Players, sessions, foods, meals and the totals of each player's day."""

from __future__ import annotations

from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.execute(
        """
        CREATE TABLE player (
            id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            name text NOT NULL UNIQUE CHECK (length(name) BETWEEN 2 AND 32),
            created_at timestamptz NOT NULL DEFAULT now(),
            last_seen_at timestamptz NOT NULL DEFAULT now()
        )
        """
    )
    op.execute(
        """
        CREATE TABLE session (
            token_hash bytea PRIMARY KEY,
            player_id bigint NOT NULL REFERENCES player ON DELETE CASCADE,
            expires_at timestamptz NOT NULL
        )
        """
    )
    op.execute("CREATE INDEX session_expires_at ON session (expires_at)")
    op.execute("CREATE INDEX session_player_id ON session (player_id)")
    op.execute(
        """
        CREATE TABLE food (
            id integer PRIMARY KEY,
            name text NOT NULL UNIQUE,
            category text NOT NULL,
            kcal double precision NOT NULL CHECK (kcal >= 0),
            protein_g double precision NOT NULL CHECK (protein_g >= 0),
            fat_g double precision NOT NULL CHECK (fat_g >= 0),
            carbs_g double precision NOT NULL CHECK (carbs_g >= 0),
            fibre_g double precision NOT NULL CHECK (fibre_g >= 0),
            sugar_g double precision NOT NULL CHECK (sugar_g >= 0)
        )
        """
    )
    op.execute(
        """
        CREATE TABLE meal (
            id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            player_id bigint NOT NULL REFERENCES player ON DELETE CASCADE,
            food_id integer NOT NULL REFERENCES food,
            grams integer NOT NULL CHECK (grams BETWEEN 1 AND 5000),
            eaten_on date NOT NULL,
            kcal double precision NOT NULL,
            points integer NOT NULL,
            idempotency_key text,
            logged_at timestamptz NOT NULL DEFAULT now(),
            UNIQUE (player_id, idempotency_key)
        )
        """
    )
    op.execute(
        """
        CREATE TABLE player_day (
            player_id bigint NOT NULL REFERENCES player ON DELETE CASCADE,
            day date NOT NULL,
            meals integer NOT NULL DEFAULT 0,
            points bigint NOT NULL DEFAULT 0,
            kcal double precision NOT NULL DEFAULT 0,
            protein_g double precision NOT NULL DEFAULT 0,
            fat_g double precision NOT NULL DEFAULT 0,
            carbs_g double precision NOT NULL DEFAULT 0,
            fibre_g double precision NOT NULL DEFAULT 0,
            sugar_g double precision NOT NULL DEFAULT 0,
            PRIMARY KEY (player_id, day)
        )
        """
    )
    op.execute("CREATE INDEX player_day_day ON player_day (day)")


def downgrade() -> None:
    op.execute("DROP TABLE player_day, meal, food, session, player")
