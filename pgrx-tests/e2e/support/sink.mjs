// @ts-check
/**
 * A sink that keeps what it is sent: the smallest HTTP server that speaks the batch route. What
 * Realtime does with a message is the stand-in's business; here it is what the relay sends.
 */
import { createServer } from 'node:http';
import { once } from 'node:events';

/** @typedef {{ at: number, status: number, headers: import('node:http').IncomingHttpHeaders, path: string, messages: any[] }} Request */

/**
 * @param {object} [options]
 * @param {(request: Request) => number | Promise<number>} [options.answer] the status to give
 */
export async function startSink({ answer = () => 202 } = {}) {
  /** @type {Request[]} */
  const requests = [];
  /** @type {Set<import('node:net').Socket>} */
  const sockets = new Set();
  let connections = 0;
  let respond = answer;

  const server = createServer({ keepAlive: true }, (incoming, outgoing) => {
    /** @type {Buffer[]} */
    const parts = [];
    incoming.on('data', (part) => parts.push(part));
    incoming.on('error', () => {});
    incoming.on('end', async () => {
      const body = Buffer.concat(parts).toString();
      /** @type {Request} */
      const request = {
        at: Date.now(), status: 0, headers: incoming.headers, path: incoming.url ?? '',
        messages: JSON.parse(body).messages,
      };
      requests.push(request);
      request.status = await respond(request);
      outgoing.writeHead(request.status, { 'content-type': 'application/json' }).end();
    });
  });
  server.keepAliveTimeout = 600_000;
  server.on('connection', (socket) => {
    connections += 1;
    sockets.add(socket);
    socket.on('close', () => sockets.delete(socket));
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = /** @type {import('node:net').AddressInfo} */ (server.address());

  const accepted = () => requests.filter((request) => request.status === 202);
  const sink = {
    url: `http://127.0.0.1:${port}`,
    requests,
    get connections() {
      return connections;
    },
    /** What is answered from now on. */
    answerWith: (/** @type {typeof answer} */ next) => (respond = next),
    /** The messages that were accepted, in order of arrival. */
    messages: () => accepted().flatMap((request) => request.messages),
    /** The events that were accepted, in order of arrival, each with its organisation. */
    events: () => sink.messages().flatMap(({ payload }) =>
      payload.events.map((/** @type {any} */ event) => ({ org_id: payload.org_id, ...event }))),
    clear: () => requests.splice(0),
    /** Stops listening and cuts every connection, as a machine that goes away. */
    stop: async () => {
      const closed = once(server, 'close');
      server.close();
      for (const socket of sockets) socket.destroy();
      await closed;
    },
    /** Listens again where it was. */
    start: async () => {
      server.listen(port, '127.0.0.1');
      await once(server, 'listening');
    },
  };
  return sink;
}
