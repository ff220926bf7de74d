// @ts-check
/**
 * `make bench`: what pg_outbox costs the writer, how soon and how fast events leave, and what an
 * idle relay does.
 *
 * Performance is a ratio in one run: arms are interleaved in random order, each round gives one
 * paired ratio for each arm, and what is reported is their median with the least and the greatest.
 * Absolute numbers are of the machine that they name. ROUNDS and SECONDS are the budget of the
 * capture part, PARTS=capture,latency,drain,idle chooses among the parts.
 */
import { writeFile } from 'node:fs/promises';
import { startCluster } from '../pgrx-tests/harness/cluster.mjs';
import { measureCapture } from './capture.mjs';
import { measureDrain } from './drain.mjs';
import { measureIdle } from './idle.mjs';
import { measureLatency } from './latency.mjs';
import { describeMachine } from './machine.mjs';
import { asMarkdown, asTable } from './report.mjs';

/** Settings of a server that means it: nothing here is faster than it would be in earnest. */
const SETTINGS = {
  fsync: 'on',
  full_page_writes: 'on',
  synchronous_commit: 'on',
  shared_buffers: '512MB',
  max_wal_size: '8GB',
  checkpoint_timeout: '1h',
  max_connections: 100,
};

const PARTS = {
  capture: measureCapture,
  latency: measureLatency,
  drain: measureDrain,
  idle: measureIdle,
};

async function main() {
  const wanted = (process.env.PARTS ?? Object.keys(PARTS).join(',')).split(',');
  const budget = {
    rounds: Number(process.env.ROUNDS ?? 5),
    seconds: Number(process.env.SECONDS ?? 3),
  };
  const cluster = await startCluster({ settings: SETTINGS });
  /** @type {import('./report.mjs').Results} */
  const results = { at: new Date().toISOString(), budget, machine: await describeMachine(cluster) };
  try {
    for (const [name, measure] of Object.entries(PARTS)) {
      if (!wanted.includes(name)) continue;
      say(`${name} …`);
      /** @type {any} */ (results)[name] = await measure(cluster, { ...budget, say });
    }
  } finally {
    await cluster.stop();
  }
  console.log(asTable(results));
  await keep(results);
}

const began = Date.now();

/** @param {string} text */
function say(text) {
  console.log(`[${String(Math.round((Date.now() - began) / 1000)).padStart(4)} s] ${text}`);
}

/** @param {import('./report.mjs').Results} results */
async function keep(results) {
  const folder = new URL('results/', import.meta.url);
  const name = results.at.slice(0, 16).replaceAll(':', '');
  await writeFile(new URL(`${name}.json`, folder), `${JSON.stringify(results, null, 2)}\n`);
  await writeFile(new URL('latest.md', folder), asMarkdown(results));
  say(`written to bench/results/${name}.json and latest.md`);
}

await main();
