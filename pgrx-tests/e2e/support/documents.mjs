// @ts-check
/** Reading Markdown: as much of it as the project's own documents are made of. */
import { readFileSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

export const ROOT = fileURLToPath(new URL('../../../', import.meta.url));

/**
 * A fenced block.
 *
 * @typedef {{ language: string, text: string, line: number }} Block
 */

/**
 * @typedef {object} Document
 * @property {string} path from the root of the project
 * @property {string} text
 * @property {Block[]} blocks
 * @property {string} prose the lines outside of blocks
 */

/** @param {string} path from the root of the project @returns {Document} */
export function readDocument(path) {
  const text = readFileSync(join(ROOT, path), 'utf8');
  /** @type {Block[]} */
  const blocks = [];
  /** @type {string[]} */
  const prose = [];
  /** @type {{ language: string, indent: number, line: number, lines: string[] } | null} */
  let open = null;
  text.split('\n').forEach((line, index) => {
    const fence = /^( *)```(\w*) *$/.exec(line);
    if (open && fence) {
      blocks.push({ language: open.language, text: open.lines.join('\n'), line: open.line });
      open = null;
    } else if (open) {
      open.lines.push(line.slice(open.indent));
    } else if (fence) {
      open = { language: fence[2], indent: fence[1].length, line: index + 1, lines: [] };
    } else {
      prose.push(line);
    }
  });
  if (open) throw new Error(`${path}: a block is not closed`);
  return { path, text, blocks, prose: prose.join('\n') };
}

/** The Markdown files of some folders. @param {string[]} folders */
export function documentsIn(folders) {
  return folders.flatMap((folder) => readdirSync(join(ROOT, folder))
    .filter((name) => name.endsWith('.md'))
    .map((name) => readDocument(join(folder, name))));
}

/**
 * The text under a heading, up to the next one of its level or above.
 *
 * @param {Document} document
 * @param {string} heading
 */
export function section(document, heading) {
  const lines = document.prose.split('\n');
  const levelOf = (/** @type {string} */ line) => /^(#+) /.exec(line)?.[1].length ?? 0;
  const start = lines.findIndex((line) => levelOf(line) > 0 && titleOf(line) === heading);
  if (start < 0) throw new Error(`${document.path} has no heading "${heading}"`);
  const level = levelOf(lines[start]);
  const rest = lines.slice(start + 1);
  const end = rest.findIndex((line) => levelOf(line) > 0 && levelOf(line) <= level);
  return rest.slice(0, end < 0 ? undefined : end).join('\n');
}

const titleOf = (/** @type {string} */ line) => line.replace(/^#+ /, '').trim();

/**
 * The rows of the first table in a text that has a column of this name; cells by column name,
 * without the ticks around them.
 *
 * @param {string} text
 * @param {string} column
 * @returns {Record<string, string>[]}
 */
export function table(text, column) {
  const tables = text.split(/\n(?!\|)/).filter((part) => /^\|/m.test(part));
  for (const part of tables) {
    const [head, , ...rows] = part.split('\n').filter((line) => line.startsWith('|')).map(cells);
    if (head.includes(column)) {
      return rows.map((row) => Object.fromEntries(head.map((name, index) => [name, row[index]])));
    }
  }
  throw new Error(`no table has a column "${column}"`);
}

const cells = (/** @type {string} */ line) =>
  line.slice(1, -1).split(' | ').map((cell) => cell.trim().replace(/^`([^`]*)`$/, '$1'));

/**
 * What links to headings of the document may end with, as GitHub makes it.
 *
 * @param {Document} document
 */
export function anchorsOf(document) {
  const headings = document.prose.split('\n').filter((line) => /^#+ /.test(line)).map(titleOf);
  return new Set(headings.map((title) =>
    title.toLowerCase().replaceAll(/[^\p{L}\p{N} _-]/gu, '').replaceAll(' ', '-')));
}

/**
 * The targets of the document's links to other places of the project.
 *
 * @param {Document} document
 */
export function linksOf(document) {
  const targets = [...document.prose.matchAll(/\]\(([^)\s]+)\)/g)].map(([, target]) => target);
  return targets.filter((target) => !/^[a-z]+:/.test(target));
}
