// A map of patches over the photo: dark (0) to light (its largest value), in steps of inferno.
const INFERNO = ["000004", "0c0826", "240c4f", "420a68", "5d126e", "781c6d", "932667", "ae305c",
  "c73e4c", "dd513a", "ed6925", "f8850f", "fca50a", "fac62d", "f2e661", "fcffa4"]
  .map((hex) => [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16)));

function colour(value) {
  const at = Math.min(Math.max(value, 0), 1) * (INFERNO.length - 1);
  const low = Math.floor(at), high = Math.min(low + 1, INFERNO.length - 1);
  return INFERNO[low].map((c, i) => Math.round(c + (INFERNO[high][i] - c) * (at - low)));
}

// The mean of maps of one shape, [h][w].
export function mean(maps) {
  return maps[0].map((row, y) => row.map((_, x) => maps.reduce((sum, m) => sum + m[y][x], 0) / maps.length));
}

// Paint `map`, [h][w], where the model saw it; gives the row and column of its largest value.
export function paint(canvas, map, { size, seen }) {
  const [h, w] = [map.length, map[0].length];
  const flat = map.flat(), most = Math.max(...flat);
  Object.assign(canvas, { width: w, height: h });
  const context = canvas.getContext("2d"), pixels = context.createImageData(w, h);
  flat.forEach((value, i) => pixels.data.set([...colour(most > 0 ? value / most : 0), 255], 4 * i));
  context.putImageData(pixels, 0, 0);
  const [top, left, bottom, right] = seen, [tall, wide] = size;
  Object.assign(canvas.style, {
    top: `${100 * top / tall}%`, height: `${100 * (bottom - top) / tall}%`,
    left: `${100 * left / wide}%`, width: `${100 * (right - left) / wide}%`,
  });
  const best = flat.indexOf(most);
  return { row: Math.floor(best / w) + 1, column: best % w + 1, h, w };
}
