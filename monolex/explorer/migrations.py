"""The tables of a run's index, as small steps in order: a later version appends a step, and none is ever changed.

What is derived from artefacts (all tables but ``label``) can be made again at any time; ``label`` holds what a person
wrote, and is named by the hash of a dictionary, so that it outlives whatever is made again.
"""

APPLICATION = 0x6D6C6578
"""SQLite's ``application_id`` of an index: the letters mlex."""

MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE dictionary (
        id INTEGER PRIMARY KEY AUTOINCREMENT, hash TEXT NOT NULL UNIQUE, made_of TEXT NOT NULL, site TEXT NOT NULL,
        layer INTEGER, name TEXT NOT NULL, kind TEXT NOT NULL, trained INTEGER NOT NULL, d_sae INTEGER NOT NULL,
        alive INTEGER, rows INTEGER);
    CREATE TABLE feature (
        dictionary INTEGER, number INTEGER, n_active INTEGER, density REAL, max REAL, skew REAL, kurtosis REAL,
        top_token TEXT, share REAL, interest REAL, kind TEXT, seeds INTEGER, reappears REAL, reappears_low REAL,
        reappears_high REAL, explanations INTEGER, explainer TEXT, explanation TEXT, simulator TEXT, score REAL,
        score_low REAL, score_high REAL, chance REAL, effect REAL, effect_low REAL, effect_high REAL,
        effect_control REAL, PRIMARY KEY (dictionary, number)) WITHOUT ROWID;
    CREATE TABLE token (
        text TEXT, share REAL, dictionary INTEGER, number INTEGER, n_active INTEGER,
        PRIMARY KEY (text, share, dictionary, number)) WITHOUT ROWID;
    CREATE TABLE explanation (
        dictionary INTEGER, number INTEGER, explainer TEXT, text TEXT, simulator TEXT, score REAL, low REAL, high REAL,
        chance REAL, reason TEXT, source TEXT);
    CREATE INDEX explanation_of ON explanation (dictionary, number);
    CREATE TABLE membership (
        dictionary INTEGER, number INTEGER, experiment TEXT, part TEXT, place INTEGER);
    CREATE INDEX membership_of ON membership (dictionary, number);
    CREATE VIRTUAL TABLE words USING fts5(explanations, tokens, tokenize = "unicode61 remove_diacritics 2");
    CREATE TABLE label (
        hash TEXT, number INTEGER, text TEXT NOT NULL, note TEXT NOT NULL, pinned INTEGER NOT NULL,
        changed TEXT NOT NULL, PRIMARY KEY (hash, number)) WITHOUT ROWID;
    """,
)
"""SQL of every step."""
