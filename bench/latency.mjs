// @ts-check
/**
 * How soon a lone event leaves: from the writer sending its statement, and from the entry being
 * written just before the commit, to the POST at the sink. One event at a time, each of an
 * organisation that has been quiet, so that no window holds it back.
 */
import pg from 'pg';
import { percentiles } from './report.mjs';
import { nowUs, startSink } from './sink.mjs';
import { openDatabase } from './setup.mjs';

const EVENTS = 1000;
const WARM_UP = 50;
const ORGANISATIONS = 400;

/** @param {import('../pgrx-tests/harness/cluster.mjs').Cluster} cluster */
export async function measureLatency(cluster) {
  /** @type {(post: import('./sink.mjs').Post) => void} */
  let arrived = () => {};
  const sink = await startSink({ keepBodies: true, onPost: (post) => arrived(post) });
  const database = await openDatabase(cluster, 'bench_latency', sink.url);
  const client = new pg.Client(cluster.url(database));
  await client.connect();

  /** @type {number[]} */
  const fromStatement = [];
  /** @type {number[]} */
  const fromEntry = [];
  for (let turn = -WARM_UP; turn < EVENTS; turn += 1) {
    const post = new Promise((resolve) => (arrived = resolve));
    const began = nowUs();
    const { rows } = await client.query(
      "insert into job (org_id) values ($1) returning id", [`org-${(turn + WARM_UP) % ORGANISATIONS}`]);
    const { at, body } = await post;
    const [{ payload }] = JSON.parse(body).messages;
    if (String(payload.events[0].ids.job_id) !== rows[0].id) throw new Error('another event arrived');
    if (turn < 0) continue;
    fromStatement.push((at - began) / 1000);
    fromEntry.push(at / 1000 - Date.parse(payload.events[0].at));
  }
  await client.end();
  await sink.stop();
  return { events: EVENTS, statement_to_post_ms: percentiles(fromStatement), entry_to_post_ms: percentiles(fromEntry) };
}
