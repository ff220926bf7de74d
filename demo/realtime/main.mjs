#!/usr/bin/env node
// @ts-check
/** The stand-in as a program: one line when it is ready, gone on SIGTERM or SIGINT. */
import { parseArgs } from 'node:util';
import { startRealtime } from './server.mjs';

const USAGE = `usage: main.mjs --jwt-secret SECRET [--port N] [--database-url URL] [options]
  --host ADDRESS           where to listen (127.0.0.1)
  --tenant ID              the tenant's name (realtime-dev)
  --strict-host            take only the Host that names the tenant
  --events-per-second N    the tenant's limit (100)
  --no-limits              take all limits off
  --private-only           refuse public channels
  --verbose                say what happens`;

const { values } = parseArgs({
  options: {
    port: { type: 'string', default: '4000' },
    host: { type: 'string' },
    'database-url': { type: 'string', default: process.env.DATABASE_URL },
    'jwt-secret': { type: 'string', default: process.env.JWT_SECRET },
    tenant: { type: 'string' },
    'strict-host': { type: 'boolean' },
    'events-per-second': { type: 'string' },
    'no-limits': { type: 'boolean' },
    'private-only': { type: 'boolean' },
    verbose: { type: 'boolean' },
    help: { type: 'boolean' },
  },
});

if (values.help || !values['jwt-secret']) {
  console.error(USAGE);
  process.exit(values.help ? 0 : 2);
}

const limit = values['events-per-second'];
const limits = limit === undefined ? {} : { eventsPerSecond: Number(limit) };
const realtime = await startRealtime({
  port: Number(values.port),
  host: values.host,
  databaseUrl: values['database-url'] ?? null,
  jwtSecret: values['jwt-secret'],
  tenantId: values.tenant,
  strictHost: values['strict-host'],
  privateOnly: values['private-only'],
  limits: values['no-limits'] ? false : limits,
  log: values.verbose ? (line) => console.error(line) : undefined,
});
console.log(`Realtime stand-in ready at ${realtime.url}`);
for (const signal of ['SIGTERM', 'SIGINT']) process.once(signal, () => realtime.stop());
