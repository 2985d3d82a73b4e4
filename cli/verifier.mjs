// A second verifier of audit reports, for Node 20 or later and nothing else; written apart from verifier.py, so that a mistake in one shows as a
// difference between the two. Exit 0 valid, 1 invalid, 2 cannot decide; one line for each check, and the first that is invalid is the last one made.
// It checks form, signature, leaf, inclusion, checkpoint, the order of plan and run, and what it is given beside; of the verdict it checks what
// needs no statistics.
const USAGE = `node verifier.mjs report.json log.vkey [witness.vkey] [--log-key FILE] [--witness KEY] [--previous CHECKPOINT]
  [--consistency FILE] [--model DIR] [--plan FILE]`;
import { createHash, createPublicKey, verify } from "node:crypto";
import { closeSync, lstatSync, openSync, readdirSync, readFileSync, readSync, statSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { parseArgs } from "node:util";

class Unknown extends Error {}
const LIMIT = 16 * 1024 * 1024, SMALL = 1024 * 1024;
const sha256 = (...parts) => parts.reduce((hash, part) => hash.update(part), createHash("sha256")).digest();
const hex = (...parts) => sha256(...parts).toString("hex");
const must = (holds, why) => { if (!holds) throw new Error(why); };
const utf8 = (bytes) => new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);

function canonical(value, left = 64) { // RFC 8785; JSON.stringify writes strings and numbers as it asks
  must(left > 0, "nested too deeply");
  if (Array.isArray(value)) return `[${value.map((part) => canonical(part, left - 1)).join(",")}]`;
  if (value !== null && typeof value === "object")
    return `{${Object.keys(value).sort().map((key) => `${JSON.stringify(key)}:${canonical(value[key], left - 1)}`).join(",")}}`;
  return JSON.stringify(value);
}

function strict(bytes, what) { // one form only: no key twice, no blank, no NaN, nothing behind the end
  const text = utf8(bytes), value = JSON.parse(text);
  must(canonical(value) === text, `${what} is not in its canonical form`);
  return value;
}

function loose(bytes, what) { // any layout, but no key twice, of which JSON.parse would take the last, and no integer that it would round
  const text = utf8(bytes), value = JSON.parse(text), open = [];
  let last;
  for (const [token] of text.matchAll(/"(?:[^"\\]|\\.)*"|[{}[\]:]|-?\d[-+.\deE]*/g)) {
    if (token === "{" || token === "[") open.push(new Set());
    else if (token === "}" || token === "]") open.pop();
    else if (token === ":") { must(!open.at(-1).has(last), `${what} holds a key twice`); open.at(-1).add(last); }
    else if (token.startsWith('"')) last = JSON.parse(token);
    else must(/[.eE]/.test(token) || Number.isSafeInteger(Number(token)), `${what} holds an integer of more than 53 bits`);
  }
  return value;
}

function bytesOf(path, what, limit = SMALL) {
  const found = statSync(path);
  must(found.isDirectory() || (found.isFile() && found.size <= limit), `${what} is too large, or no regular file`);
  return readFileSync(path);
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

function keysOf(given, kind = 1) { // a file or a key itself; kind 1 signs notes, kind 4 is a witness's
  const text = kind === 4 && given.includes("+") ? given : bytesOf(given, "the key").toString("utf8");
  const keys = text.split("\n").filter((line) => line.trim() && !line.startsWith("#")).map((text) => {
    const [, line = "", revoked] = /^(\S+)(?: revoked-at-leaf=(0|[1-9][0-9]{0,15}))?$/.exec(text.trim()) ?? [];
    const at = [line.indexOf("+"), line.indexOf("+", line.indexOf("+") + 1)];
    const [name, id, raw] = [line.slice(0, at[0]), line.slice(at[0] + 1, at[1]), Buffer.from(line.slice(at[1] + 1).trim(), "base64")];
    if (raw.length !== 33 || raw[0] !== kind || sha256(name, "\n", raw).subarray(0, 4).toString("hex") !== id) throw new Unknown("no verifier key");
    return { name, id, publicKey: raw.subarray(1), revoked: revoked === undefined ? Infinity : Number(revoked) };
  });
  if (keys.length === 0) throw new Unknown("no verifier key");
  return keys;
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

function begins(first, second, path, oldRoot, newRoot) { // RFC 6962 2.1.2, as it is defined: from the whole tree down to where the old one ends
  const left = [...path];
  const next = () => { const hash = left.pop(); must(hash?.length === 32, "the consistency proof is too short"); return hash; };
  const roots = (old, size, whole) => { // of the first `old` leaves of a subtree, and of the subtree
    if (old === size) { const root = whole ? oldRoot : next(); return [root, root]; }
    let half = 1;
    while (half * 2 < size) half *= 2;
    const beside = next(), [before, now] = old <= half ? roots(old, half, whole) : roots(old - half, size - half, false);
    return old <= half ? [before, sha256("\x01", now, beside)] : [sha256("\x01", beside, before), sha256("\x01", beside, now)];
  };
  const [before, now] = first === 0 ? [sha256(), newRoot] : roots(first, second, true);
  return left.length === 0 && before.equals(oldRoot) && now.equals(newRoot);
}

function fractions(value, place, found = []) {
  if (typeof value === "number" && !Number.isSafeInteger(value)) found.push(place);
  else if (value !== null && typeof value === "object") for (const key of Object.keys(value)) fractions(value[key], `${place}/${key}`, found);
  return found;
}

function signature(at) {
  if (!at.given.key) throw new Unknown("give the log's key");
  const { envelope, payload } = at, keys = (at.keys = keysOf(at.given.key));
  must(envelope.payloadType === "application/vnd.in-toto+json", "another type of payload");
  const message = Buffer.concat([Buffer.from(`DSSEv1 28 ${envelope.payloadType} ${payload.length} `), payload]);
  const good = envelope.signatures.filter((entry) => {
    exactly(entry, ["keyid", "sig"], "a signature");
    const key = keys.find((one) => `${one.name}+${one.id}` === entry.keyid), raw = plain(entry.sig, "a signature");
    must(!key || ed25519(key.publicKey, message, raw), "the signature is not the key's");
    return key;
  });
  must(good.length > 0, "no signature is of the given key");
  at.revoked = Math.max(...good.map((entry) => keys.find((one) => `${one.name}+${one.id}` === entry.keyid).revoked));
  return `Ed25519 by ${good.map((entry) => entry.keyid).join(", ")}`;
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
  must(plain(root, "the root").length === 32, "the root does not have 32 bytes");
  return { origin, size: Number(size), root: plain(root, "the root"), body, lines: lines.trimEnd().split("\n"), revoked };
}

function witnessed({ given, note }) { // C2SP tlog-cosignature: key hash, time as 64 bits, signature over "cosignature/v1", the time and the checkpoint's text
  if (!given.witness) return "not asked for (--witness)";
  const keys = keysOf(given.witness, 4);
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
  return `signed by ${good[0].split(" ")[1]}`;
}

function plansBeforeRuns({ given, predicate, opened, index }) {
  const own = given.plan && hex(canonical(loose(bytesOf(given.plan, "the plan", LIMIT), "the plan")));
  must(!own || predicate.verification.some((run) => run.plan.digest === own), "no run was judged by the plan that you gave");
  for (const run of predicate.verification) {
    const digest = run.plan.digest, [before, start] = [run.plan.leaf_index, run.run.leaf_index];
    must(hex(canonical(run.plan.body)) === digest, "a plan is not the one whose digest is named");
    if (before === null || start === null) throw new Unknown("the report does not name the leaves of plan and run");
    must(before < start && start < index, "a plan did not come before its run");
    if (!opened.has(before) || !opened.has(start)) throw new Unknown("the leaves of plan and run are not opened");
    const [plan, began] = [opened.get(before), opened.get(start)];
    must(plan.type === "plan.frozen" && plan.body.digest === digest && began.type === "run.started" && began.body.plan === digest, "other leaves");
  }
  return `${predicate.verification.length} plan(s), each before its run${own ? ", one of them yours" : ""}`;
}

const rowOf = (run, gate) => run[gate.kind === "metric" ? "metrics" : "attacks"].find((one) => one.name === gate.name && one.split === gate.split);

function verdicts({ predicate }) {
  const order = ["failed", "inconclusive", "passed"], last = new Map();
  for (const run of predicate.verification) {
    const how = predicate.processing.find((one) => one.job === run.job);
    if (!last.has(how.model) || how.rung >= last.get(how.model).rung) last.set(how.model, { rung: how.rung, run });
    if (run.verdict === null) continue;
    const outside = how.guarantee !== "exact" && run.plan.body.readings.some((entry) => entry.gate && rowOf(run, entry)?.state === "outside");
    const told = ["utility", "integrity", ...(how.guarantee === "approximate" ? ["representation"] : [])]; // what no printed state decides
    must(run.verdict !== "failed" || outside || run.failure_codes.some((code) => told.includes(code)), "no gate is outside, and the verdict is failed");
    must(run.verdict === "failed" || !outside, "a gate is outside, and the verdict is not failed");
    if (run.verdict !== "passed" || how.guarantee === "exact") continue;
    must(!run.plan.body.power?.cannot_pass, "the plan could not be passed by its own account");
    for (const gate of run.plan.body.readings.filter((entry) => entry.gate && entry.split.startsWith("forget"))) {
      const row = rowOf(run, gate);
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
  return `${predicate.verdict}: a pass held to its gates, a failure to a reason, the whole to the weakest run; no statistics are made again`;
}

function form(at) {
  const { raw } = at, report = strict(raw.at(-1) === 10 ? raw.subarray(0, -1) : raw, "the report");
  exactly(report, ["envelope", "tlog_proof"], "the report");
  exactly(report.envelope, ["payload", "payloadType", "signatures"], "the envelope");
  Object.assign(at, { envelope: report.envelope, proof: report.tlog_proof, payload: plain(report.envelope.payload, "the payload") });
  return `canonical, ${raw.length} bytes`;
}

function version(at) { // asked after the signature: a changed byte in the version is a wrong signature, not another version
  const statement = strict(at.payload, "the payload"), predicate = statement?.predicate;
  must(statement !== null && typeof predicate === "object" && predicate !== null, "no in-toto statement");
  if (statement.predicateType !== "https://lethe.dev/verification/v1" || predicate.report_version !== "1") throw new Unknown("another version");
  must(statement._type === "https://in-toto.io/Statement/v1", "no in-toto statement v1");
  must(fractions(predicate, "").every((place) => /^\/verification\/\d+\/plan\/body\//.test(place)), "a metric is not a decimal string");
  Object.assign(at, { statement, predicate });
  return `report version 1, revision ${predicate.revision}`;
}

function leaves(at) {
  const { proof, payload, predicate } = at, split = proof.indexOf("\n\n"), lines = proof.slice(0, split).split("\n");
  must(split > 0 && lines[0] === "c2sp.org/tlog-proof@v1" && /^extra /.test(lines[1]) && /^index (0|[1-9][0-9]{0,15})$/.test(lines[2]), "no proof");
  const note = checkpoint(proof.slice(split + 2), at.keys), extra = strict(plain(lines[1].slice(6), "extra"), "extra");
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
  must(extra.leaf.type === "report.stored" && extra.leaf.body.digest === hex(payload), "the leaf is of another report");
  must(extra.leaf.body.revision === predicate.revision, "the leaf is of another revision");
  Object.assign(at, { note, index, opened });
  return `leaf ${index} and ${opened.size} opened ones, in a signed tree of ${note.size}`;
}

function revoked({ given, note, index, revoked }) {
  must(index < revoked && note.size <= note.revoked, "the key was revoked before");
  if (note.revoked < Infinity && !given.witness) throw new Unknown("only a revoked key has signed the checkpoint");
  return "what counts was signed before any revocation";
}

function previous({ given, note, keys }) {
  if (!given.previous) return "not asked for (--previous)";
  const old = checkpoint(utf8(bytesOf(given.previous, "the previous checkpoint")), keys);
  must(old.origin === note.origin, "the previous checkpoint is of another log");
  must(old.size <= note.size, `the checkpoint has ${note.size} leaves, the previous one ${old.size}`);
  let path = [];
  if (old.size > 0 && old.size < note.size) {
    if (!given.consistency) throw new Unknown(`give the answer of GET /v1/audit/consistency?from=${old.size}&to=${note.size} as --consistency FILE`);
    const found = loose(bytesOf(given.consistency, "the consistency proof"), "the consistency proof");
    must(found.from === old.size && found.to === note.size, "the consistency proof is of other sizes");
    path = found.hashes.map((hash) => plain(hash, "the consistency proof"));
  }
  must(begins(old.size, note.size, path, old.root, note.root), "the log does not begin with the previous checkpoint: it was rewritten");
  return `begins with the ${old.size} leaves of before`;
}

const within = (folder, under = "") => readdirSync(join(folder, under), { withFileTypes: true }).flatMap((entry) =>
  entry.isDirectory() ? within(folder, `${under}${entry.name}/`) : [`${under}${entry.name}`]); // a link is an entry and is not followed

function hashOf(path, name) {
  must(lstatSync(path).isFile(), `${name} is not a regular file`);
  const hash = createHash("sha256"), chunk = Buffer.alloc(SMALL), file = openSync(path);
  for (let length; (length = readSync(file, chunk)) > 0;) hash.update(chunk.subarray(0, length));
  closeSync(file);
  return `sha256:${hash.digest("hex")}`;
}

function weights({ given, statement }) {
  if (!given.model) return "not asked for (--model)";
  const raw = bytesOf(join(given.model, "manifest.json"), "manifest.json"), about = statement.subject.find((one) => one.digest.sha256 === hex(raw));
  must(about, "the model's manifest is not of a version that the report is about");
  const files = new Map(strict(raw, "manifest.json").files.map((file) => [file.path, file.digest]));
  const there = within(given.model).filter((name) => name !== "manifest.json");
  const odd = [...there.filter((name) => !files.has(name)), ...[...files.keys()].filter((name) => !there.includes(name))];
  must(odd.length === 0, `files that are missing or too many: ${odd.join(", ")}`);
  for (const [name, digest] of files) must(hashOf(join(given.model, name), name) === digest, `${name} has other bytes than the report is about`);
  return `${about.name}: ${files.size} file(s) re-hashed`;
}

const CHECKS = [["form", form], ["signature", signature], ["version", version], ["log", leaves], ["witness", witnessed], ["revoked keys", revoked],
  ["previous checkpoint", previous], ["plan before run", plansBeforeRuns], ["weights", weights], ["verdict", verdicts]];
const NEEDED = ["form", "signature", "version", "log"]; // without these nothing further can be asked
const shown = (text) => String(text).slice(0, 200).replace(/[^\x20-\x7e]/g, (one) => `\\u${one.charCodeAt(0).toString(16).padStart(4, "0")}`);

// A path or the bytes, and what is given beside: key, witness, previous, consistency, model, plan. [exit status, what to say]; it throws nothing.
export function examine(report, key, witness, beside = {}, say = () => {}) {
  const at = { given: { key, witness, ...beside } };
  let [status, reached] = [0, true];
  for (const [name, check] of CHECKS) {
    let [mark, said] = ["-", "not reached"];
    try {
      if (reached) {
        at.raw ??= typeof report === "string" ? bytesOf(report, "the report", LIMIT) : report;
        [mark, said] = ["ok", check(at)];
      }
    } catch (error) {
      const unknown = error instanceof Unknown || error?.syscall !== undefined; // a file that cannot be read
      [mark, said, status] = unknown ? ["?", error.message, 2] : ["FAIL", error?.message, 1];
      reached = unknown && !NEEDED.includes(name);
    }
    say(`${mark.padEnd(5)} ${name.padEnd(20)} ${shown(said)}`);
  }
  return [status, ["valid", "INVALID", "cannot be decided"][status]];
}

function command(given) {
  const names = ["log-key", "witness", "previous", "consistency", "model", "plan"];
  let parsed;
  try {
    parsed = parseArgs({ args: given, allowPositionals: true, options: Object.fromEntries(names.map((name) => [name, { type: "string" }])) });
  } catch (error) {
    return [2, `${shown(error.message)}\n${USAGE}`];
  }
  const { positionals: [report, key, witness, more], values: { "log-key": logKey, witness: named, ...beside } } = parsed;
  if (report === undefined || more !== undefined) return [2, USAGE];
  return examine(report, logKey ?? key, named ?? witness, beside, (line) => console.log(line));
}

if (process.argv[1] && import.meta.url === pathToFileURL(process.argv[1]).href) {
  const [status, said] = command(process.argv.slice(2));
  console.log(said);
  process.exitCode = status;
}
