"""SQL of the log's tree: events that wait, leaves, nodes, signed heads, keys, and what the signer says of itself.

`Node` is (level, index) as in `services/audit/tree.py`; nodes of level 0 are the leaves.
"""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import func, select, text
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from services.db.tables import AuditLeaf, Cosignature, SignerState, SigningKey, TreeHead

Node = tuple[int, int]

_ALONE = text("SELECT pg_try_advisory_xact_lock(hashtextextended('lethe.log', 0))")
_WAITING = text("SELECT id, commitment FROM audit_event WHERE seq IS NULL ORDER BY id LIMIT :limit")
_APPEND = text("""
    WITH given AS (
        SELECT CAST(:start AS bigint) + n - 1 AS seq, event_id, substr(CAST(:hashes AS bytea), CAST(32 * (n - 1) + 1 AS int), 32) AS leaf_hash
          FROM unnest(CAST(:events AS bigint[])) WITH ORDINALITY AS x (event_id, n)),
    leaf AS (INSERT INTO audit_leaf (seq, event_id, leaf_hash) SELECT seq, event_id, leaf_hash FROM given)
    UPDATE audit_event e SET seq = given.seq FROM given WHERE e.id = given.event_id
    """)
_ADD_NODES = text("""
    INSERT INTO tree_node (level, index, hash)
    SELECT level, index, substr(CAST(:hashes AS bytea), CAST(32 * (n - 1) + 1 AS int), 32)
      FROM unnest(CAST(:levels AS int[]), CAST(:indexes AS bigint[])) WITH ORDINALITY AS x (level, index, n)
    """)
_NODES = text("""
    SELECT 0 AS level, seq AS place, leaf_hash AS hash FROM audit_leaf WHERE seq = ANY(CAST(:seqs AS bigint[]))
    UNION ALL
    SELECT n.level, n.index, n.hash FROM unnest(CAST(:levels AS int[]), CAST(:indexes AS bigint[])) AS w (level, index)
      JOIN tree_node n ON n.level = w.level AND n.index = w.index
    """)
_WRONG_LEAVES = text("""
    SELECT (:last - :first) - count(*) FILTER (WHERE l.leaf_hash = sha256('\\x00'::bytea || e.commitment) AND e.seq = l.seq)
      FROM audit_leaf l JOIN audit_event e ON e.id = l.event_id WHERE l.seq >= :first AND l.seq < :last
    """)
_WRONG_NODES = text("""
    WITH below AS (
        SELECT 0 AS level, seq AS index, leaf_hash AS hash FROM audit_leaf WHERE seq >= :first AND seq < :last
        UNION ALL
        SELECT level, index, hash FROM tree_node WHERE (index << level) >= :first AND ((index + 1) << level) <= :last)
    SELECT CAST(:expected AS bigint) - count(*) FROM below p
      JOIN below l ON l.level = p.level - 1 AND l.index = p.index * 2
      JOIN below r ON r.level = p.level - 1 AND r.index = p.index * 2 + 1
     WHERE p.hash = sha256('\\x01'::bytea || l.hash || r.hash)
    """)
_WRONG_TOP = text("""
    SELECT count(*) FROM tree_node p LEFT JOIN tree_node l ON l.level = p.level - 1 AND l.index = p.index * 2
      LEFT JOIN tree_node r ON r.level = p.level - 1 AND r.index = p.index * 2 + 1
     WHERE p.level > :level AND (p.hash = sha256('\\x01'::bytea || l.hash || r.hash)) IS NOT TRUE
    """)
_UNSIGNED = text("""
    SELECT r.id, r.tenant_id, r.request_id, r.digest, r.statement, e.seq, e.type, p.salt, p.body
      FROM audit_report r JOIN audit_event e ON e.id = r.event_id JOIN audit_payload p ON p.event_id = e.id
     WHERE r.envelope IS NULL AND e.seq < :size ORDER BY e.seq LIMIT :limit
    """)
_OLDEST_UNSIGNED = text("""
    SELECT min(e.seq) FROM audit_report r JOIN audit_event e ON e.id = r.event_id WHERE r.envelope IS NULL AND e.seq IS NOT NULL
    """)
_SIGN = text("UPDATE audit_report SET envelope = CAST(:envelope AS jsonb), tlog_proof = :proof WHERE id = :id AND envelope IS NULL")
_ADVANCE = text("INSERT INTO outbox (tenant_id, topic, ref) VALUES (:tenant, 'request.advance', :request)")
_OPENED = text("""
    SELECT e.seq, e.type, p.salt, p.body FROM audit_event e JOIN audit_payload p ON p.event_id = e.id
     WHERE e.seq = ANY(CAST(:seqs AS bigint[])) ORDER BY e.seq
    """)
_ADD_EVENT = text("INSERT INTO audit_event (tenant_id, type, commitment) VALUES (NULL, :type, :commitment) RETURNING id")
_LAG = text("SELECT coalesce(extract(epoch FROM clock_timestamp() - min(at)), 0) FROM audit_event WHERE seq IS NULL")


def alone(session: Session) -> bool:
    """Say whether this transaction is the only one that writes leaves or heads; it then is, to its end."""
    return bool(session.scalar(_ALONE))


def waiting(session: Session, limit: int) -> list[tuple[int, bytes]]:
    """Return id and commitment of at most `limit` committed events that have no leaf, in the order of their ids."""
    return [(row.id, bytes(row.commitment)) for row in session.execute(_WAITING, {"limit": limit})]


def size(session: Session) -> int:
    """Return how many leaves the log has."""
    last = session.scalar(select(func.max(AuditLeaf.seq)))
    return 0 if last is None else last + 1


def append(session: Session, start: int, events: Sequence[int], hashes: Sequence[bytes], nodes: Mapping[Node, bytes]) -> None:
    """Write leaves `start` and on for these events, and the nodes that became full. The hashes, 32 bytes each, travel as one value: it is cheaper."""
    session.execute(_APPEND, {"start": start, "events": list(events), "hashes": b"".join(hashes)})
    if nodes:
        levels, indexes = zip(*nodes, strict=True)
        session.execute(_ADD_NODES, {"levels": list(levels), "indexes": list(indexes), "hashes": b"".join(nodes.values())})


def nodes(session: Session, wanted: Collection[Node]) -> dict[Node, bytes]:
    """Return the hashes of these nodes, by one statement; those that are not stored are left out."""
    if not wanted:
        return {}
    inner = [node for node in wanted if node[0] > 0]
    values = {
        "seqs": [index for level, index in wanted if level == 0],
        "levels": [level for level, _ in inner],
        "indexes": [index for _, index in inner],
    }
    return {(row.level, row.place): bytes(row.hash) for row in session.execute(_NODES, values)}


def wrong_below(session: Session, first: int, last: int) -> int:
    """Return how many leaves in [first, last) do not hash their event's commitment, and how many nodes over them do not hash their children.

    `first` is a multiple of a power of two not below the length of the range. What is missing counts as wrong.
    """
    count = last - first
    bounds = {"first": first, "last": last}
    expected = sum(count >> level for level in range(1, count.bit_length()))
    return int(session.scalar(_WRONG_LEAVES, bounds) or 0) + int(session.scalar(_WRONG_NODES, {**bounds, "expected": expected}) or 0)


def wrong_above(session: Session, level: int) -> int:
    """Return how many nodes above `level` do not hash their two children."""
    return int(session.scalar(_WRONG_TOP, {"level": level}) or 0)


def newest_head(session: Session) -> TreeHead | None:
    """Return the newest signed head."""
    return session.scalar(select(TreeHead).order_by(TreeHead.size.desc()).limit(1))


def head_of(session: Session, tree_size: int) -> TreeHead | None:
    """Return the signed head of exactly this size."""
    return session.get(TreeHead, tree_size)


def age_s(session: Session, head: TreeHead) -> float:
    """Return the seconds since a head was signed, by the database's clock."""
    return float(session.scalar(select(func.extract("epoch", func.clock_timestamp() - TreeHead.signed_at)).where(TreeHead.size == head.size)) or 0.0)


def add_head(session: Session, tree_size: int, root: bytes, note: str) -> None:
    """Store a signed head; the same head again changes nothing."""
    session.execute(upsert(TreeHead).values(size=tree_size, root=root, note=note).on_conflict_do_nothing())


def cosignatures(session: Session, tree_size: int) -> list[str]:
    """Return the lines that witnesses added to the head of this size."""
    return list(session.scalars(select(Cosignature.line).where(Cosignature.size == tree_size).order_by(Cosignature.witness)))


def add_cosignature(session: Session, tree_size: int, witness: str, line: str) -> None:
    """Store a witness's line; its first one for a head stands."""
    session.execute(upsert(Cosignature).values(size=tree_size, witness=witness, line=line).on_conflict_do_nothing())


def cosigned_size(session: Session, origin: str, witness: str) -> int:
    """Return the size of the newest head of this origin that a witness has cosigned, 0 where it has none."""
    query = select(Cosignature.size).join(TreeHead, TreeHead.size == Cosignature.size)
    query = query.where(Cosignature.witness == witness, TreeHead.note.startswith(f"{origin}\n", autoescape=True))
    return session.scalar(query.order_by(Cosignature.size.desc()).limit(1)) or 0


def unsigned_reports(session: Session, below: int, limit: int) -> Sequence[Any]:
    """Return reports without an envelope whose leaf is below `below`: id, tenant_id, request_id, digest, statement, and seq, type, salt, body."""
    return session.execute(_UNSIGNED, {"size": below, "limit": limit}).all()


def oldest_unsigned(session: Session) -> int | None:
    """Return the smallest leaf number of a report without an envelope; None where no report waits for its signature."""
    return session.scalar(_OLDEST_UNSIGNED)


def sign_report(session: Session, row: Any, envelope: str, proof: str) -> None:
    """Set envelope and proof of a report, once, and let its request go on."""
    session.execute(_SIGN, {"id": row.id, "envelope": envelope, "proof": proof})
    session.execute(_ADVANCE, {"tenant": row.tenant_id, "request": row.request_id})


def opened(session: Session, seqs: Collection[int]) -> Sequence[Any]:
    """Return seq, type, salt and body of the leaves whose payload is still held."""
    return session.execute(_OPENED, {"seqs": list(seqs)}).all() if seqs else []


def add_event(session: Session, event_type: str, commitment: bytes) -> int:
    """Write an event of no tenant and return its id; only the signer may."""
    return int(session.scalar(_ADD_EVENT, {"type": event_type, "commitment": commitment}) or 0)


def keys(session: Session) -> Sequence[SigningKey]:
    """Return every key of the signer, oldest first."""
    return session.scalars(select(SigningKey).order_by(SigningKey.valid_from)).all()


def add_key(session: Session, **columns: Any) -> None:
    """Store a key, which becomes the current one."""
    session.execute(upsert(SigningKey).values(**columns))


def end_key(session: Session, key_id: str) -> None:
    """End a key's validity now."""
    session.execute(text("UPDATE signing_key SET valid_to = clock_timestamp() WHERE key_id = :key AND valid_to IS NULL"), {"key": key_id})


def tell(session: Session, name: str, state: str, detail: str) -> None:
    """Write what the signer says of itself."""
    now = func.clock_timestamp()
    said = upsert(SignerState).values(name=name, state=state, detail=detail, seen_at=now)
    session.execute(said.on_conflict_do_update(index_elements=["name"], set_={"state": state, "detail": detail, "seen_at": now}))


def told(session: Session, name: str) -> tuple[str, str, float] | None:
    """Return state, detail and the seconds since the signer was seen; None where none ever was."""
    age = func.extract("epoch", func.clock_timestamp() - SignerState.seen_at)
    row = session.execute(select(SignerState.state, SignerState.detail, age).where(SignerState.name == name)).one_or_none()
    return None if row is None else (row[0], row[1], float(row[2]))


def lag_s(session: Session) -> float:
    """Return the age in seconds of the oldest event without a leaf, of those that this role sees; 0 where none waits."""
    return float(session.scalar(_LAG) or 0.0)


def moment(session: Session) -> datetime:
    """Return the database's time."""
    return session.execute(select(func.clock_timestamp())).scalar_one()
