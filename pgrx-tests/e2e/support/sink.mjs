// @ts-check
/**
 * A sink that keeps what it is sent: the smallest HTTP server that speaks the batch route, and that
 * fails in every way that is asked of it. What Realtime does with a message is the stand-in's
 * business; here it is what the relay sends, and what it does when it is answered badly.
 *
 * How a request is answered is decided by a function of the request, so for each message and
 * organisation anew; answers.mjs has the ways. What happens to a connection before there is a
 * request has switches: `stop` refuses it, `holdConnections` leaves it unread, `tls` gives it a
 * certificate, good or bad.
 */
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { createServer as createHttpServer } from 'node:http';
import { createServer as createHttpsServer } from 'node:https';
import { createServer as createTcpServer } from 'node:net';

/** Often enough that no connection is idle, and so long that no drip ends within a deadline. */
const DRIP_INTERVAL_MS = 50;
const DRIP_BYTES = 1_000_000;

/**
 * @typedef {object} Request
 * @property {number} at when it had arrived as a whole
 * @property {number | null} answeredAt when the last byte of the answer was written; null when none
 *   was, or not to its end
 * @property {number} status that was answered; 0 while there is none
 * @property {boolean} isTaken whether its messages were kept
 * @property {import('node:http').IncomingHttpHeaders} headers with hashes in place of tokens
 * @property {string} method
 * @property {string} path
 * @property {number} bytes of the body
 * @property {any[]} messages
 * @property {Answer | null} answer
 *
 * @typedef {import('./answers.mjs').Answer} Answer
 * @typedef {import('./answers.mjs').Answerer} Answerer
 */

/** @typedef {Awaited<ReturnType<typeof startSink>>} Sink */

/**
 * @param {object} [options]
 * @param {Answerer} [options.answer] a status, or one of answers.mjs
 * @param {{ key: string, certificate: string }} [options.tls] in PEM
 */
export async function startSink({ answer = () => 202, tls } = {}) {
  /** @type {Request[]} */
  const requests = [];
  /** @type {Set<import('node:net').Socket>} */
  const sockets = new Set();
  /** Connections that were accepted and are not read yet. @type {(() => void)[] | null} */
  let held = null;
  let connections = 0;
  let respond = answer;

  const receive = async (
    /** @type {import('node:http').IncomingMessage} */ incoming,
    /** @type {import('node:http').ServerResponse} */ outgoing,
  ) => {
    outgoing.on('error', () => {}); // Whoever asked has gone.
    const request = await read(incoming).catch(() => null);
    if (!request) return;
    requests.push(request);
    const given = await respond(request);
    request.answer = typeof given === 'number' ? { status: given } : given;
    request.status = request.answer.status;
    const { status, takes = status >= 200 && status < 300 } = request.answer;
    request.isTaken = takes;
    await send(outgoing, request.answer);
    if (outgoing.writableFinished) request.answeredAt = Date.now();
  };
  const server = tls
    ? createHttpsServer({ key: tls.key, cert: tls.certificate, keepAlive: true }, receive)
    : createHttpServer({ keepAlive: true }, receive);
  server.keepAliveTimeout = 600_000;

  // Connections are taken by a server of their own, which may keep them from the one that speaks.
  const door = createTcpServer({ pauseOnConnect: true, noDelay: true }, (socket) => {
    connections += 1;
    sockets.add(socket);
    socket.on('close', () => sockets.delete(socket));
    socket.on('error', () => {});
    const admit = () => {
      if (socket.destroyed) return;
      server.emit('connection', socket);
      socket.resume();
    };
    if (held) held.push(admit);
    else admit();
  });
  door.listen(0, '127.0.0.1');
  await once(door, 'listening');
  const { port } = /** @type {import('node:net').AddressInfo} */ (door.address());

  const taken = () => requests.filter(({ isTaken }) => isTaken);
  const sink = {
    url: `${tls ? 'https' : 'http'}://127.0.0.1:${port}`,
    port,
    requests,
    /** How many were made since the start. */
    get connections() {
      return connections;
    },
    /** What is answered from now on. @param {Answerer} next */
    answerWith: (next) => (respond = next),
    /** The messages that were taken, in order of arrival. */
    messages: () => taken().flatMap((request) => request.messages),
    /** The events that were taken, in order of arrival, each with its organisation. */
    events: () => sink.messages().flatMap(listEvents),
    /** The same of every request, whatever came of it. */
    offeredEvents: () => requests.flatMap(({ messages }) => messages.flatMap(listEvents)),
    clear: () => requests.splice(0),
    /** From now on connections are accepted and neither read nor answered. */
    holdConnections: () => void (held ??= []),
    /** Reads those that were held, and later ones at once. */
    releaseConnections: () => {
      const waiting = held ?? [];
      held = null;
      for (const admit of waiting) admit();
    },
    /** Cuts every connection, as a machine that goes away; it listens on. */
    cutConnections: () => {
      for (const socket of sockets) socket.destroy();
    },
    /** Stops listening and cuts every connection: the next one is refused. */
    stop: async () => {
      const closed = once(door, 'close');
      door.close();
      sink.cutConnections();
      await closed;
    },
    /** Listens again where it was. */
    start: async () => {
      door.listen(port, '127.0.0.1');
      await once(door, 'listening');
    },
  };
  return sink;
}

/**
 * @param {any} message
 * @returns {any[]}
 */
function listEvents({ payload }) {
  const { org_id, events } = payload;
  return events.map((/** @type {any} */ event) => ({ org_id, ...event }));
}

/**
 * @param {import('node:http').IncomingMessage} incoming
 * @returns {Promise<Request>}
 */
async function read(incoming) {
  /** @type {Buffer[]} */
  const parts = [];
  for await (const part of incoming) parts.push(part);
  const body = Buffer.concat(parts);
  return {
    at: Date.now(), answeredAt: null, status: 0, isTaken: false, answer: null,
    headers: hideTokens(incoming.headers), method: incoming.method ?? '', path: incoming.url ?? '',
    bytes: body.length, messages: messagesOf(body),
  };
}

/**
 * A test that fails prints what was recorded, and a token is nobody's to read.
 *
 * @param {import('node:http').IncomingHttpHeaders} headers
 */
function hideTokens(headers) {
  const hidden = { ...headers };
  for (const name of ['authorization', 'apikey']) {
    if (typeof hidden[name] === 'string') hidden[name] = hashToken(hidden[name]);
  }
  return hidden;
}

/** What stands in a record for a header with this value. @param {string} value */
export function hashToken(value) {
  const token = value.replace(/^Bearer /i, '');
  return `sha256:${createHash('sha256').update(token).digest('hex').slice(0, 16)}`;
}

/** @param {Buffer} body */
function messagesOf(body) {
  try {
    const { messages } = JSON.parse(body.toString());
    return Array.isArray(messages) ? messages : [];
  } catch {
    return [];
  }
}

/**
 * @param {import('node:http').ServerResponse} outgoing
 * @param {Answer} answer
 */
async function send(outgoing, { status, headers = {}, body = '', manner = 'whole', cutAfter }) {
  const { socket } = outgoing;
  if (!socket || manner === 'never') return;
  if (cutAfter) return sendPart(outgoing, { status, headers, body, cutAfter });
  if (manner === 'raw') {
    socket.end(body);
    return;
  }
  if (manner === 'dripHead') return dripText(socket, `HTTP/1.1 ${status} Accepted\r\nx: `);
  if (manner === 'dripBody') {
    outgoing.writeHead(status, { ...headers, 'content-length': String(DRIP_BYTES) });
    outgoing.flushHeaders();
    return dripText(socket, '');
  }
  outgoing.writeHead(status, { 'content-type': 'application/json', ...headers });
  await new Promise((resolve) => {
    outgoing.once('close', resolve);
    outgoing.end(body, () => resolve(undefined));
  });
}

/**
 * @param {import('node:http').ServerResponse} outgoing
 * @param {{ status: number, headers: Record<string, string>, body: string | Buffer,
 *   cutAfter: 'silence' | 'head' | 'body' }} answer
 */
async function sendPart(outgoing, { status, headers, body, cutAfter }) {
  const { socket } = outgoing;
  if (cutAfter !== 'silence') {
    outgoing.writeHead(status, { ...headers, 'content-length': String(Buffer.byteLength(body)) });
    outgoing.flushHeaders();
    const part = cutAfter === 'body' ? body.slice(0, body.length >> 1) : '';
    if (part.length > 0) await new Promise((resolve) => outgoing.write(part, resolve));
  }
  // An end would let what was written arrive before; a reset may overtake it, as in a crash.
  await new Promise((resolve) => setImmediate(resolve));
  socket?.destroy();
}

/**
 * Writes a character at a time, and blanks when the text is at its end.
 *
 * @param {import('node:net').Socket} socket
 * @param {string} text
 */
function dripText(socket, text) {
  let place = 0;
  const timer = setInterval(() => socket.write(text[place++] ?? ' '), DRIP_INTERVAL_MS).unref();
  socket.once('close', () => clearInterval(timer));
}
