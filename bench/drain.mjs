// @ts-check
/**
 * How fast a backlog leaves: events are prepared while the sink is paused, and the clock runs from
 * resume to the last of them at the sink. Twice: written one a transaction (an entry each), and by
 * statements of 1,000 rows (packed in runs).
 */
import { execFile } from 'node:child_process';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { waitUntil } from '../pgrx-tests/harness/wait.mjs';
import { cpuSeconds } from './machine.mjs';
import { openDatabase, relayPid } from './setup.mjs';
import { nowUs, startSink } from './sink.mjs';

const EVENTS = 300_000;
const CLIENTS = 8;
const ORGANISATIONS = 1000;

const PREPARED = {
  'one event a transaction': {
    transactions: EVENTS,
    script: `set synchronous_commit = off;
\\set org random(1, ${ORGANISATIONS})
insert into job (org_id) values ('org-' || :org);`,
  },
  '1,000 rows a statement': {
    transactions: EVENTS / 1000,
    script: `insert into job (org_id) select 'org-' || i % 25 from generate_series(1, 1000) i order by i % 25;`,
  },
};

/**
 * @param {import('../pgrx-tests/harness/cluster.mjs').Cluster} cluster
 * @param {{ say: (text: string) => void }} run
 */
export async function measureDrain(cluster, { say }) {
  const measured = [];
  for (const [shape, prepared] of Object.entries(PREPARED)) {
    say(`drain: ${shape}`);
    measured.push({ shape, ...await drain(cluster, `bench_drain_${measured.length}`, prepared) });
  }
  return measured;
}

/**
 * @param {import('../pgrx-tests/harness/cluster.mjs').Cluster} cluster
 * @param {string} name
 * @param {{ transactions: number, script: string }} prepared
 */
async function drain(cluster, name, { transactions, script }) {
  let events = 0;
  let posts = 0;
  let lastAt = 0;
  const sink = await startSink({
    keepBodies: false,
    onPost: (post) => {
      events += post.events;
      posts += 1;
      lastAt = post.at;
    },
  });
  const database = await openDatabase(cluster, name, sink.url);
  await cluster.psql("select outbox.pause('bench')", { database });
  const file = join(cluster.directory, 'drain.sql');
  await writeFile(file, script);
  await promisify(execFile)(join(cluster.pgBin, 'pgbench'), [
    '-n', '-c', `${CLIENTS}`, '-j', '2', '-t', `${Math.ceil(transactions / CLIENTS)}`, '-f', file, cluster.url(database)]);
  await cluster.psql('checkpoint', { database });

  const pid = await relayPid(cluster, database);
  const cpuBefore = await cpuSeconds(pid);
  const began = nowUs();
  await cluster.psql("select outbox.resume('bench')", { database });
  await waitUntil(() => events, `${EVENTS} events at the sink`, { timeoutMs: 300_000, accept: (seen) => seen >= EVENTS });
  const seconds = (lastAt - began) / 1e6;
  const relayCpu = await cpuSeconds(pid) - cpuBefore;
  await sink.stop();
  return {
    events, posts, seconds, events_per_second: Math.round(events / seconds),
    relay_cpu_us_per_event: relayCpu * 1e6 / events,
  };
}
