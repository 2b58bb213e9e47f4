"""The schema: SQL text for whoever reads or changes it, and the same tables as names for the queries.

`MIGRATIONS` is the only thing that makes or changes tables: numbered, named, each applied once and remembered in the
table `migration`. The SQL is the part that SQLite and PostgreSQL understand alike. Numbers are columns; short lists are
JSON text. A question can therefore be asked with the `sqlite3` shell alone:

    select feature_index, text, density from feature join label using (dictionary_id, feature_index)
    order by density desc limit 10;
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Connection, Double, Integer, MetaData, Table, Text, inspect, text

MIGRATIONS: dict[str, str] = {
    "0001_initial": """
        create table dictionary (
            id           integer primary key,
            name         text not null unique,
            model        text not null,
            hook_point   text not null,
            architecture text not null,
            dataset      text not null,
            d_in         integer not null,
            d_sae        integer not null,
            context_size integer not null,
            num_tokens   bigint not null,
            metrics      text not null,              -- JSON object of numbers
            details      text not null               -- JSON object
        );
        create table feature (
            dictionary_id    integer not null references dictionary (id),
            feature_index    integer not null,
            num_firings      bigint not null,
            density          double precision not null,
            max_activation   double precision not null,
            mean_activation  double precision not null,
            histogram_edges  text not null,          -- JSON list, one longer than the counts
            histogram_counts text not null,
            top_logits       text not null,          -- JSON list of [token id, text, logit]
            bottom_logits    text not null,
            primary key (dictionary_id, feature_index)
        );
        create index feature_by_density on feature (dictionary_id, density);
        create index feature_by_num_firings on feature (dictionary_id, num_firings);
        create index feature_by_max_activation on feature (dictionary_id, max_activation);
        create index feature_by_mean_activation on feature (dictionary_id, mean_activation);
        create table label (
            dictionary_id integer not null,
            feature_index integer not null,
            text          text not null,
            kind          text not null,
            precision     double precision,
            lift          double precision,
            num_firings   bigint not null,
            primary key (dictionary_id, feature_index),
            foreign key (dictionary_id, feature_index) references feature (dictionary_id, feature_index)
        );
        create index label_by_precision on label (dictionary_id, precision);
        create index label_by_lift on label (dictionary_id, lift);
        create table text_window (
            dictionary_id   integer not null references dictionary (id),
            window_id       bigint not null,
            document        text not null,
            document_offset bigint not null,         -- place of the first token in its document
            token_ids       text not null,           -- JSON lists of one length
            token_texts     text not null,
            primary key (dictionary_id, window_id)
        );
        create table example (
            dictionary_id integer not null,
            feature_index integer not null,
            rank          integer not null,
            window_id     bigint not null,
            peak          integer not null,          -- position in the window
            activation    double precision not null, -- at the peak
            positions     text not null,             -- JSON lists of one length: where, and how strongly
            activations   text not null,
            primary key (dictionary_id, feature_index, rank),
            foreign key (dictionary_id, feature_index) references feature (dictionary_id, feature_index),
            foreign key (dictionary_id, window_id) references text_window (dictionary_id, window_id)
        )
    """,
}

_metadata = MetaData()

dictionary = Table(
    "dictionary",
    _metadata,
    Column("id", Integer),
    *(Column(name, Text) for name in ("name", "model", "hook_point", "architecture", "dataset")),
    *(Column(name, Integer) for name in ("d_in", "d_sae", "context_size")),
    Column("num_tokens", BigInteger),
    Column("metrics", Text),
    Column("details", Text),
)

feature = Table(
    "feature",
    _metadata,
    Column("dictionary_id", Integer),
    Column("feature_index", Integer),
    Column("num_firings", BigInteger),
    *(Column(name, Double) for name in ("density", "max_activation", "mean_activation")),
    *(Column(name, Text) for name in ("histogram_edges", "histogram_counts", "top_logits", "bottom_logits")),
)

label = Table(
    "label",
    _metadata,
    Column("dictionary_id", Integer),
    Column("feature_index", Integer),
    Column("text", Text),
    Column("kind", Text),
    Column("precision", Double),
    Column("lift", Double),
    Column("num_firings", BigInteger),
)

text_window = Table(
    "text_window",
    _metadata,
    Column("dictionary_id", Integer),
    Column("window_id", BigInteger),
    Column("document", Text),
    Column("document_offset", BigInteger),
    Column("token_ids", Text),
    Column("token_texts", Text),
)

example = Table(
    "example",
    _metadata,
    Column("dictionary_id", Integer),
    Column("feature_index", Integer),
    Column("rank", Integer),
    Column("window_id", BigInteger),
    Column("peak", Integer),
    Column("activation", Double),
    Column("positions", Text),
    Column("activations", Text),
)

TABLES = (dictionary, feature, label, text_window, example)  # an order in which rows can be inserted


def applied_migrations(connection: Connection) -> list[str] | None:
    """Names of the migrations this database has seen, in order; `None` if it holds other people's tables only."""
    tables = inspect(connection).get_table_names()
    if "migration" in tables:
        return list(connection.scalars(text("select name from migration order by name")))
    return None if tables else []


def migrate(connection: Connection) -> None:
    """Apply what is missing. The caller holds a write transaction, so two processes cannot do it at once."""
    connection.execute(text("create table if not exists migration (name text primary key)"))
    applied = applied_migrations(connection) or []
    for name, script in MIGRATIONS.items():
        if name not in applied:
            for statement in script.split(";"):
                connection.execute(text(statement))
            connection.execute(text("insert into migration (name) values (:name)"), {"name": name})
