#!/usr/bin/env bash
# From nothing to an audit report with curl. Needs: a running `make up`, LETHE_URL and LETHE_KEY as it printed them, curl and jq.
# Every line is run by tests/e2e/test_up.py.
set -euo pipefail
API=$LETHE_URL/v1
LETHE=${LETHE:-.venv/bin/lethe}
ask() { curl -sS --fail-with-body -H "Authorization: Bearer $LETHE_KEY" -H 'Content-Type: application/json' "$@"; }
key() { echo "Idempotency-Key: $(cat /proc/sys/kernel/random/uuid)"; }
settled() { until ask "$API/$1" | jq -e "$2" >/dev/null; do sleep 0.5; done; }

# A dataset: a Parquet file with the columns record_id, label and what its adapter reads; subject_id only helps to fill the subject index.
$LETHE import sklearn digits digits.parquet --records-per-subject 10 > imported.json
ask -H "$(key)" "$API/datasets" -d "$(jq '{name: "digits", adapter, adapter_params, subject_types: ["controller_customer_id"]}' imported.json)"
SHA=$(sha256sum digits.parquet | cut -d' ' -f1); SIZE=$(stat -c %s digits.parquet)
ask -H "$(key)" "$API/datasets/digits/versions" -d "{\"files\": [{\"path\": \"digits.parquet\", \"size_bytes\": $SIZE, \"sha256\": \"$SHA\"}]}" > version.json
curl -sS --fail -T digits.parquet "$(jq -r '.uploads[0].url' version.json)"
ask "$API/datasets/digits/versions/1/complete" -d '{}'
settled datasets/digits/versions/1 '.status == "ready"'

# Who stands behind which record; the identifiers are hashed before anything is stored.
ask "$API/datasets/digits/versions/1/subjects" -d "$(jq -n '{rows: [range(10) | {
  record_id: "digits-00000\(.)", identifiers: [{type: "controller_customer_id", value: "writer-000"}]}]}')"

# A model, and its first version by a training run.
ask -H "$(key)" "$API/models" -d '{"name": "reader", "task": "classification", "architecture": "tiny_cnn", "architecture_params": {"outputs": 10, "width": 8}}'
JOB=$(ask -H "$(key)" "$API/models/reader/training-runs" -d '{"dataset": "digits", "dataset_version": 1, "recipe": {"epochs": 15, "learning_rate": 0.002}, "seed": 1}' | jq -r .id)
settled "jobs/$JOB" .done

# 1  ask
ask -H "$(key)" "$API/deletion-requests" -d '{
  "external_id": "dsr-2026-00417", "regulation": "gdpr", "policy": "demo", "method": "auto",
  "scope": {"kind": "subject", "identifiers": [{"type": "controller_customer_id", "value": "writer-000"}]},
  "identity": {"mode": "asserted_by_controller", "evidence_ref": "kyc-5521"}}' > request.json
DR=$(jq -r .id request.json)

# 2  follow, until the stream ends with the request
curl -sS -N --max-time 300 -H "Authorization: Bearer $LETHE_KEY" -H 'Accept: text/event-stream' "$API/deletion-requests/$DR/events" > events.txt
settled "deletion-requests/$DR" .done
ask "$API/deletion-requests/$DR" > done.json
jq '{status, result}' done.json

# 3  download the unlearned checkpoint and check it
V=$(jq -r '.result.versions[0].version' done.json)
ask "$API/models/reader/versions/$V" | jq -r '.manifest.files[] | "\(.sha256)  \(.path)"' > SHA256SUMS
curl -sS --fail -L -H "Authorization: Bearer $LETHE_KEY" -o model.safetensors "$API/models/reader/versions/$V/files/model.safetensors"
sha256sum --check --ignore-missing SHA256SUMS

# 4  pull the audit report and check it offline; the key is the log's, and belongs to be had by another way than the report
ask "$API/deletion-requests/$DR/audit-report" > report.json
curl -sS --fail "$LETHE_URL/.well-known/jwks.json" | jq -r '.keys[].vkey' > log.vkey
$LETHE verify report.json --log-key log.vkey
jq -r .envelope.payload report.json | base64 -d > statement.json
test "sha256:$(sha256sum statement.json | cut -d' ' -f1)" = "$(jq -r .result.audit_report.digest done.json)"
jq '.predicate | {verdict, sentence}' statement.json
