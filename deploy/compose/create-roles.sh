#!/bin/sh
# Runs once, on an empty data folder: the owner of the tables and the four serving roles. Rights come with the migrations.
set -eu
psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --username postgres --dbname lethe \
  --set owner="$OWNER_PASSWORD" --set gateway="$GATEWAY_PASSWORD" --set worker="$WORKER_PASSWORD" --set control="$CONTROL_PASSWORD" \
  --set signer="$SIGNER_PASSWORD" <<'SQL'
CREATE ROLE lethe_owner LOGIN CREATEROLE PASSWORD :'owner';
CREATE ROLE lethe_gateway LOGIN PASSWORD :'gateway';
CREATE ROLE lethe_worker LOGIN PASSWORD :'worker';
CREATE ROLE lethe_control LOGIN PASSWORD :'control';
CREATE ROLE lethe_signer LOGIN PASSWORD :'signer';
ALTER DATABASE lethe OWNER TO lethe_owner;
SQL
