// Available PORT: answers each request with itself, which it reads once available() tells of all of it.

import java.io.DataInputStream;
import java.io.IOException;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.net.Socket;

class Available {
	static void waitFor(DataInputStream in, int bytes) throws Exception {
		while (in.available() < bytes)
			Thread.sleep(1);
	}

	static void serve(Socket socket) {
		try (socket) {
			DataInputStream in = new DataInputStream(socket.getInputStream());
			while (true) {
				waitFor(in, 4);
				byte[] body = new byte[in.readInt()];
				waitFor(in, body.length);
				in.readFully(body);
				socket.getOutputStream().write(body);
			}
		} catch (IOException error) {
			// the client has gone, or the connection was reset
		} catch (Exception error) {
			error.printStackTrace();
		}
	}

	public static void main(String[] arguments) throws Exception {
		int port = Integer.parseInt(arguments[0]);
		ServerSocket listener = new ServerSocket(port, 100, InetAddress.getLoopbackAddress());
		while (true) {
			Socket socket = listener.accept();
			Thread thread = new Thread(() -> serve(socket));
			thread.setDaemon(true);
			thread.start();
		}
	}
}
