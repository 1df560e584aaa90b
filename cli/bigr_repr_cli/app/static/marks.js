// Marks on a photograph: strokes, rectangles and lassos in pixel coordinates, with undo. Independent of the server.

export class Marks {
  constructor(canvas, settings, changed) {
    this.canvas = canvas;
    this.settings = settings; // () => ({tool, size}); size as a share of the shorter side
    this.changed = changed;
    this.clear();
    canvas.addEventListener("pointerdown", (event) => this.begin(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    canvas.addEventListener("pointerup", () => this.end());
    canvas.addEventListener("pointercancel", () => { this.drawing = null; this.paint(); });
  }

  // Start with a photograph of this size; `shapes`: earlier marks.
  open(width, height, shapes = []) {
    this.width = width;
    this.height = height;
    const scale = Math.min(1, 1024 / Math.max(width, height));
    this.canvas.width = Math.max(1, Math.round(width * scale));
    this.canvas.height = Math.max(1, Math.round(height * scale));
    this.shapes = shapes;
    this.undone = [];
    this.drawing = null;
    this.paint();
  }

  clear() {
    this.width = this.height = 1;
    this.shapes = [];
    this.undone = [];
    this.drawing = null;
  }

  add(shape) {
    this.shapes.push(shape);
    this.undone = [];
    this.paint();
    this.changed();
  }

  undo() {
    if (!this.shapes.length) return false;
    this.undone.push(this.shapes.pop());
    this.paint();
    this.changed();
    return true;
  }

  redo() {
    if (!this.undone.length) return false;
    this.shapes.push(this.undone.pop());
    this.paint();
    this.changed();
    return true;
  }

  wipe() {
    if (this.shapes.length) this.add({ kind: "nothing" });
  }

  box(left, top, right, bottom) {
    this.add({ kind: "rectangle", points: [[left, top], [right, bottom]] });
  }

  at(event) {
    const box = this.canvas.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width * this.width;
    const y = (event.clientY - box.top) / box.height * this.height;
    return [Math.round(10 * x) / 10, Math.round(10 * y) / 10];
  }

  begin(event) {
    if (event.button) return;
    event.preventDefault();
    this.canvas.setPointerCapture(event.pointerId);
    const { tool, size } = this.settings();
    const point = this.at(event);
    this.drawing = { kind: tool, points: [point, point], width: size * Math.min(this.width, this.height) };
    this.paint();
  }

  move(event) {
    if (!this.drawing) return;
    const point = this.at(event);
    if (this.drawing.kind === "rectangle") this.drawing.points[1] = point;
    else this.drawing.points.push(point);
    this.paint();
  }

  end() {
    const shape = this.drawing;
    this.drawing = null;
    if (!shape) return;
    const [[x0, y0], [x1, y1]] = shape.points;
    const nothing = shape.kind === "rectangle" ? Math.abs(x1 - x0) < 1 || Math.abs(y1 - y0) < 1
      : shape.kind === "lasso" && shape.points.length < 4;
    if (nothing) this.paint();
    else this.add(shape);
  }

  paint() {
    const color = getComputedStyle(this.canvas).getPropertyValue("--mark").trim() || "red";
    const context = this.canvas.getContext("2d");
    render(context, this.canvas.width, this.canvas.height, this.width, this.height, this.shown(), color);
    // Shapes are drawn opaque, then made half transparent together, so that overlaps are not darker.
    context.save();
    context.globalCompositeOperation = "destination-in";
    context.globalAlpha = 0.55;
    context.fillRect(0, 0, this.canvas.width, this.canvas.height);
    context.restore();
  }

  shown() {
    return this.drawing ? [...this.shapes, this.drawing] : this.shapes;
  }

  get empty() {
    return this.shapes.findLast((shape) => shape.kind === "nothing") === this.shapes.at(-1);
  }

  // The marks as a base64 PNG, at the photograph's own size unless that is very large; null if nothing is marked.
  png() {
    if (!this.shapes.length || this.empty) return null;
    const scale = Math.min(1, 4096 / Math.max(this.width, this.height));
    const canvas = document.createElement("canvas");
    canvas.width = Math.max(1, Math.round(this.width * scale));
    canvas.height = Math.max(1, Math.round(this.height * scale));
    const context = canvas.getContext("2d", { willReadFrequently: true });
    render(context, canvas.width, canvas.height, this.width, this.height, this.shapes, "white");
    const image = context.getImageData(0, 0, canvas.width, canvas.height);
    let any = false;
    for (let i = 3; i < image.data.length; i += 4) { // no half pixels
      image.data[i] = image.data[i] >= 128 ? 255 : 0;
      any ||= image.data[i] > 0;
    }
    context.putImageData(image, 0, 0);
    return any ? canvas.toDataURL("image/png").split(",")[1] : null;
  }
}

function render(context, width, height, fullWidth, fullHeight, shapes, color) {
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.clearRect(0, 0, width, height);
  context.setTransform(width / fullWidth, 0, 0, height / fullHeight, 0, 0);
  context.fillStyle = context.strokeStyle = color;
  context.lineCap = context.lineJoin = "round";
  for (const { kind, points, width: line } of shapes) {
    if (kind === "nothing") {
      context.clearRect(0, 0, fullWidth, fullHeight);
      continue;
    }
    context.globalCompositeOperation = kind === "eraser" ? "destination-out" : "source-over";
    if (kind === "rectangle") {
      const [[x0, y0], [x1, y1]] = points;
      context.fillRect(Math.min(x0, x1), Math.min(y0, y1), Math.abs(x1 - x0), Math.abs(y1 - y0));
      continue;
    }
    context.beginPath();
    points.forEach(([x, y], i) => i ? context.lineTo(x, y) : context.moveTo(x, y));
    if (kind === "lasso") { context.closePath(); context.fill(); continue; }
    context.lineWidth = Math.max(1, line);
    context.stroke();
  }
  context.globalCompositeOperation = "source-over";
  context.setTransform(1, 0, 0, 1, 0, 0);
}
