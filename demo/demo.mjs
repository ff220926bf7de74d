#!/usr/bin/env node
// @ts-check
/**
 * `make demo`: starts everything, says where to look, and takes it all away again on Ctrl-C.
 *
 * PORT chooses the page's port. DATABASE_URL, REALTIME_URL and JWT_SECRET bring one's own.
 */
import { once } from 'node:events';
import { DemoError } from './own_database.mjs';
import { startDemo, withoutPassword } from './stack.mjs';

const { DATABASE_URL, REALTIME_URL, JWT_SECRET, PORT } = process.env;
const colour = process.stdout.isTTY && !process.env.NO_COLOR;
const bold = (/** @type {string} */ text) => (colour ? `\x1b[1m${text}\x1b[0m` : text);
const dim = (/** @type {string} */ text) => (colour ? `\x1b[2m${text}\x1b[0m` : text);

// Whoever presses Ctrl-C while it starts means it as well.
const interrupted = Promise.race([once(process, 'SIGINT'), once(process, 'SIGTERM')]);

try {
  console.log(`\n${bold('pg_outbox demo')}\n`);
  const demo = await startDemo({
    databaseUrl: DATABASE_URL || undefined,
    realtimeUrl: REALTIME_URL || undefined,
    jwtSecret: JWT_SECRET || undefined,
    port: readPort(PORT),
    report: (step, seconds) => console.log(`  ${step}  ${dim(`${seconds.toFixed(1)} s`)}`),
  });
  console.log(`
  ${bold('Open')}  ${bold(demo.url)}
        twice, as people of the same organisation and of the other one
  ${bold('psql')}  psql ${withoutPassword(demo.databaseUrl)}
        update cataloging_jobs set status = 'done' where number = 5;

  Ctrl-C stops it and removes everything.
`);
  await interrupted;
  console.log('\n  Stopping …');
  await demo.stop();
  console.log('  Everything is removed.\n');
} catch (error) {
  const { message, stack } = /** @type {Error} */ (error);
  console.error(`\n  The demo cannot start: ${error instanceof DemoError ? message : stack}\n`);
  process.exitCode = 1;
}

/** @param {string | undefined} text */
function readPort(text) {
  if (!text) return 0;
  if (/^\d+$/.test(text) && Number(text) < 65536) return Number(text);
  throw new DemoError(`PORT=${text} is not a port`);
}
