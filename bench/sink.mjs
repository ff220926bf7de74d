// @ts-check
/**
 * A sink that costs as little as it can, so that the relay is what is measured. It runs in a thread
 * of its own, or the bench's own work would be in its latencies, and counts events without parsing.
 */
import { createServer } from 'node:http';
import { once } from 'node:events';
import { Worker, isMainThread, parentPort } from 'node:worker_threads';

/** @typedef {{ at: number, events: number, body: string }} Post */

/** Microseconds since the epoch, from one clock for all threads. */
export const nowUs = () => (performance.timeOrigin + performance.now()) * 1000;

/**
 * Starts the sink. `onPost` is called for each request with its time of arrival, taken in the
 * sink's thread when the first bytes were there.
 *
 * @param {{ keepBodies: boolean, onPost: (post: Post) => void }} options
 */
export async function startSink({ keepBodies, onPost }) {
  const worker = new Worker(new URL(import.meta.url));
  worker.postMessage({ keepBodies });
  const [{ port }] = await once(worker, 'message');
  worker.on('message', onPost);
  return { url: `http://127.0.0.1:${port}`, stop: () => worker.terminate() };
}

async function serve() {
  const [{ keepBodies }] = await once(/** @type {any} */ (parentPort), 'message');
  const server = createServer((request, response) => {
    const at = nowUs();
    /** @type {Buffer[]} */
    const parts = [];
    request.on('data', (part) => parts.push(part));
    request.on('end', () => {
      response.writeHead(202).end();
      const body = Buffer.concat(parts);
      parentPort?.postMessage({ at, events: countEvents(body), body: keepBodies ? body.toString() : '' });
    });
  });
  server.keepAliveTimeout = 600_000;
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  parentPort?.postMessage({ port: /** @type {any} */ (server.address()).port });
}

/** Listed events, and those that a refresh stands for. @param {Buffer} body */
function countEvents(body) {
  let count = 0;
  for (let at = body.indexOf('"event_type":'); at >= 0; at = body.indexOf('"event_type":', at + 13)) {
    const refresh = body.subarray(at + 13, at + 22).toString() === '"refresh"';
    count += refresh ? Number(/"count":(\d+)/.exec(body.subarray(at, at + 400).toString())?.[1]) : 1;
  }
  return count;
}

if (!isMainThread && parentPort) await serve();
