// A second verifier of audit reports, for Node 20 or later and nothing else: node verifier.mjs report.json log.vkey [witness.vkey]
// Written apart from verifier.py, so that a mistake in one shows as a difference between the two. Exit 0 valid, 1 invalid, 2 cannot decide.
// It checks form, signature, leaf, inclusion, checkpoint and the order of plan and run; of the verdict it checks what needs no statistics.
import { createHash, createPublicKey, verify } from "node:crypto";
import { closeSync, openSync, readFileSync, readSync } from "node:fs";
import { pathToFileURL } from "node:url";

class Unknown extends Error {}
const LIMIT = 16 * 1024 * 1024;
const sha256 = (...parts) => parts.reduce((hash, part) => hash.update(part), createHash("sha256")).digest();
const must = (holds, why) => { if (!holds) throw new Error(why); };

function canonical(value, left = 64) { // RFC 8785; JSON.stringify writes strings and numbers as it asks
  must(left > 0, "nested too deeply");
  if (Array.isArray(value)) return `[${value.map((part) => canonical(part, left - 1)).join(",")}]`;
  if (value !== null && typeof value === "object")
    return `{${Object.keys(value).sort().map((key) => `${JSON.stringify(key)}:${canonical(value[key], left - 1)}`).join(",")}}`;
  return JSON.stringify(value);
}

function strict(bytes, what) { // one form only: no key twice, no blank, no NaN, nothing behind the end
  const text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  const value = JSON.parse(text);
  must(canonical(value) === text, `${what} is not in its canonical form`);
  return value;
}

function plain(text, what) {
  const raw = Buffer.from(String(text), "base64");
  must(typeof text === "string" && raw.toString("base64") === text, `${what} is not base64`);
  return raw;
}

const exactly = (value, names, what) => must(value !== null && typeof value === "object" && !Array.isArray(value)
  && canonical(Object.keys(value).sort()) === canonical([...names].sort()), `${what} has other members`);

function ed25519(publicKey, message, signature) {
  const key = createPublicKey({ format: "jwk", key: { kty: "OKP", crv: "Ed25519", x: publicKey.toString("base64url") } });
  return signature.length === 64 && verify(null, message, key, signature);
}

function keysOf(path, kind = 1) { // kind 1 signs notes, kind 4 is a witness's
  return readFileSync(path, "utf8").split("\n").filter((line) => line.trim() && !line.startsWith("#")).map((text) => {
    const [, line, revoked] = /^(\S+)(?: revoked-at-leaf=(0|[1-9][0-9]{0,15}))?$/.exec(text.trim()) ?? [];
    if (line === undefined) throw new Unknown("no verifier key");
    const at = [line.indexOf("+"), line.indexOf("+", line.indexOf("+") + 1)];
    const [name, id, raw] = [line.slice(0, at[0]), line.slice(at[0] + 1, at[1]), Buffer.from(line.slice(at[1] + 1).trim(), "base64")];
    if (raw.length !== 33 || raw[0] !== kind || sha256(name, "\n", raw).subarray(0, 4).toString("hex") !== id) throw new Unknown("no verifier key");
    return { name, id, publicKey: raw.subarray(1), revoked: revoked === undefined ? Infinity : Number(revoked) };
  });
}

function included(hash, index, size, path, root) { // RFC 9162 2.1.3.2, with numbers that may pass 32 bits
  let at = BigInt(index), last = BigInt(size) - 1n;
  must(at >= 0n && at <= last, "the index is not in the tree");
  for (const other of path) {
    must(last !== 0n && other.length === 32, "the path is too long");
    if (at & 1n || at === last) {
      hash = sha256("\x01", other, hash);
      while (at !== 0n && !(at & 1n)) { at >>= 1n; last >>= 1n; }
    } else hash = sha256("\x01", hash, other);
    at >>= 1n; last >>= 1n;
  }
  return last === 0n && hash.equals(root);
}

function fractions(value, place, found = []) {
  if (typeof value === "number" && !Number.isSafeInteger(value)) found.push(place);
  else if (value !== null && typeof value === "object") for (const key of Object.keys(value)) fractions(value[key], `${place}/${key}`, found);
  return found;
}

function signature(envelope, payload, keys) {
  must(envelope.payloadType === "application/vnd.in-toto+json", "another type of payload");
  const message = Buffer.concat([Buffer.from(`DSSEv1 28 ${envelope.payloadType} ${payload.length} `), payload]);
  const good = envelope.signatures.filter((entry) => {
    exactly(entry, ["keyid", "sig"], "a signature");
    const key = keys.find((one) => `${one.name}+${one.id}` === entry.keyid), raw = plain(entry.sig, "a signature");
    must(!key || ed25519(key.publicKey, message, raw), "the signature is not the key's");
    return key;
  });
  must(good.length > 0, "no signature is of the given key");
  return Math.max(...good.map((entry) => keys.find((one) => `${one.name}+${one.id}` === entry.keyid).revoked));
}

function checkpoint(text, keys) {
  const match = /^([^\n]+)\n(0|[1-9][0-9]{0,15})\n([^\n]+)\n\n((?:— [^ \n]+ [^ \n]+\n)+)$/u.exec(text);
  must(match, "no checkpoint");
  const [, origin, size, root, lines] = match, body = Buffer.from(`${origin}\n${size}\n${root}\n`);
  const good = lines.trimEnd().split("\n").map((line) => {
    const [, name, encoded] = line.split(" "), raw = plain(encoded, "a line");
    const key = keys.find((one) => one.name === name && one.name === origin && one.id === raw.subarray(0, 4).toString("hex"));
    must(!key || ed25519(key.publicKey, body, raw.subarray(4)), "the checkpoint's signature is not the key's");
    return key;
  }).filter(Boolean);
  must(good.length > 0, "the checkpoint is not signed by the given key");
  const revoked = Math.max(...good.map((key) => key.revoked));
  return { size: Number(size), root: plain(root, "the root"), body, lines: lines.trimEnd().split("\n"), revoked };
}

function witnessed(note, keys) { // C2SP tlog-cosignature: key hash, time as 64 bits, signature over "cosignature/v1", the time and the checkpoint's text
  const good = note.lines.filter((line) => {
    const [, name, encoded] = line.split(" "), raw = plain(encoded, "a line");
    const key = keys.find((one) => one.name === name && one.id === raw.subarray(0, 4).toString("hex"));
    if (!key) return false;
    must(raw.length === 76 && !(raw[4] & 0x80), "a witness's line has another length");
    const message = Buffer.concat([Buffer.from(`cosignature/v1\ntime ${raw.readBigUInt64BE(4)}\n`), note.body]);
    must(ed25519(key.publicKey, message, raw.subarray(12)), "the cosignature is not the witness's");
    return true;
  });
  if (good.length === 0) throw new Unknown("the witness has not signed this checkpoint");
}

function plansBeforeRuns(predicate, opened, reportIndex) {
  for (const run of predicate.verification) {
    const digest = run.plan.digest, [before, start] = [run.plan.leaf_index, run.run.leaf_index];
    must(sha256(canonical(run.plan.body)).toString("hex") === digest, "a plan is not the one whose digest is named");
    if (before === null || start === null || !opened.has(before) || !opened.has(start)) throw new Unknown("the leaves of plan and run are not opened");
    must(before < start && start < reportIndex, "a plan did not come before its run");
    const [plan, began] = [opened.get(before), opened.get(start)];
    must(plan.type === "plan.frozen" && plan.body.digest === digest && began.type === "run.started" && began.body.plan === digest, "other leaves");
  }
}

function verdicts(predicate) {
  const order = ["failed", "inconclusive", "passed"], last = new Map();
  for (const run of predicate.verification) {
    const how = predicate.processing.find((one) => one.job === run.job);
    if (!last.has(how.model) || how.rung >= last.get(how.model).rung) last.set(how.model, { rung: how.rung, run });
    if (run.verdict !== "passed" || how.guarantee === "exact") continue;
    must(!run.plan.body.power?.cannot_pass, "the plan could not be passed by its own account");
    for (const gate of run.plan.body.readings.filter((entry) => entry.gate && entry.split.startsWith("forget"))) {
      const row = run[gate.kind === "metric" ? "metrics" : "attacks"].find((one) => one.name === gate.name && one.split === gate.split);
      must(row && ["inside", "insensitive"].includes(row.state) && row.after !== null, "a gate is not inside, and the verdict is passed");
      if (gate.absolute) continue;
      const from = row.detail.paired?.value !== undefined ? 0 : Number(row.reference), width = Number(row.band.epsilon) + 2e-4;
      const [low, high] = from === 0 && row.detail.paired ? [row.detail.paired.low, row.detail.paired.high] : row.interval;
      must(gate.direction === "max" || Number(low) >= from - width, "a gate lies below its band");
      must(gate.direction === "min" || Number(high) <= from + width, "a gate lies above its band");
    }
  }
  const found = [...last.values()].map((one) => order.indexOf(one.run.verdict)).filter((at) => at >= 0);
  must(predicate.verdict === (found.length ? order[Math.min(...found)] : null), "the verdict is not the weakest of the runs");
}

function bytesOf(path) {
  const raw = Buffer.alloc(LIMIT + 1), file = openSync(path);
  const length = readSync(file, raw, 0, LIMIT + 1, 0);
  closeSync(file);
  must(length <= LIMIT, "the report is too large");
  return raw.subarray(0, length);
}

function check(raw, keyPath, witnessPath) {
  const report = strict(raw.at(-1) === 10 ? raw.subarray(0, -1) : raw, "the report");
  exactly(report, ["envelope", "tlog_proof"], "the report");
  exactly(report.envelope, ["payload", "payloadType", "signatures"], "the envelope");
  const payload = plain(report.envelope.payload, "the payload"), statement = strict(payload, "the payload"), predicate = statement?.predicate;
  must(statement !== null && typeof predicate === "object" && predicate !== null, "no in-toto statement");
  if (statement.predicateType !== "https://lethe.dev/verification/v1" || predicate.report_version !== "1") throw new Unknown("another version");
  must(statement._type === "https://in-toto.io/Statement/v1", "no in-toto statement v1");
  must(fractions(predicate, "").every((place) => /^\/verification\/\d+\/plan\/body\//.test(place)), "a metric is not a decimal string");
  if (!keyPath) throw new Unknown("give the log's key");
  const keys = keysOf(keyPath);
  const revoked = signature(report.envelope, payload, keys);
  const split = report.tlog_proof.indexOf("\n\n"), lines = report.tlog_proof.slice(0, split).split("\n");
  must(split > 0 && lines[0] === "c2sp.org/tlog-proof@v1" && /^extra /.test(lines[1]) && /^index (0|[1-9][0-9]{0,15})$/.test(lines[2]), "no proof");
  const note = checkpoint(report.tlog_proof.slice(split + 2), keys), extra = strict(plain(lines[1].slice(6), "extra"), "extra");
  if (witnessPath) witnessed(note, keysOf(witnessPath, 4));
  const index = Number(lines[2].slice(6)), opened = new Map(extra.leaves.map((leaf) => [leaf.index, leaf]));
  exactly(extra, ["leaf", "leaves"], "extra");
  must(opened.size === extra.leaves.length, "a leaf is opened twice");
  const commits = ({ body, salt, type }) => sha256("\x00", sha256(canonical({ body, salt, type })));
  const path = lines.slice(3).map((line) => plain(line, "the path"));
  must(included(commits(extra.leaf), index, note.size, path, note.root), "the report's leaf is not in the tree");
  for (const leaf of extra.leaves) {
    exactly(leaf, ["body", "index", "path", "salt", "type"], "an opened leaf");
    must(included(commits(leaf), leaf.index, note.size, leaf.path.map((node) => plain(node, "a path")), note.root), "a leaf is not in the tree");
  }
  exactly(extra.leaf, ["body", "salt", "type"], "the report's leaf");
  must(extra.leaf.type === "report.stored" && extra.leaf.body.digest === sha256(payload).toString("hex"), "the leaf is of another report");
  must(extra.leaf.body.revision === predicate.revision, "the leaf is of another revision");
  must(index < revoked && note.size <= note.revoked, "the key was revoked before");
  if (note.revoked < Infinity && !witnessPath) throw new Unknown("only a revoked key has signed the checkpoint");
  plansBeforeRuns(predicate, opened, index);
  verdicts(predicate);
  return `valid: leaf ${index} of ${note.size}, verdict ${predicate.verdict}`;
}

export function examine(report, keyPath, witnessPath) { // a path or the bytes; [exit status, what to say]; it throws nothing
  try {
    return [0, check(typeof report === "string" ? bytesOf(report) : report, keyPath, witnessPath)];
  } catch (error) {
    const unknown = error instanceof Unknown || error.code === "ENOENT";
    return [unknown ? 2 : 1, `${unknown ? "cannot be decided" : "INVALID"}: ${JSON.stringify(String(error.message).slice(0, 200))}`];
  }
}

if (process.argv[1] && import.meta.url === pathToFileURL(process.argv[1]).href) {
  const [status, said] = examine(...process.argv.slice(2, 5));
  console.log(said);
  process.exitCode = status;
}
